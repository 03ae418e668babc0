#include "export/gguf_family.h"

#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace aqhost {
namespace {

constexpr GgufFamily kFamilies[] = {
    {.id = "olmoe", .architecture = "olmoe", .qk_norm = AQ_QK_NORM_FULL, .fewer_kv = false},
    {.id = "mixtral",
     .architecture = "llama",
     .swaps_heads = true,
     .norm_topk = true,
     .out_bias = true,
     .head_dim = true,
     .tied = true,
     .ffn_scales = true},
    {.id = "qwen2_moe", .architecture = "qwen2moe", .shared = SharedExpert::kGated},
    {.id = "deepseek_moe",
     .architecture = "deepseek",
     .swaps_heads = true,
     .shared = SharedExpert::kPlain,
     .dense_layers = true,
     .tied = true,
     .routed_scale = true},
    {.id = "qwen3_moe",
     .architecture = "qwen3moe",
     .norm_topk = true,
     .qk_norm = AQ_QK_NORM_HEAD,
     .head_dim = true,
     .tied = true,
     .ffn_scales = true},
    {.id = "gpt_oss",
     .architecture = "gpt-oss",
     .norm_topk = true,
     .out_bias = true,
     .head_dim = true,
     .sinks = true,
     .windows = true,
     .ffn_biases = true,
     .activation = AQ_ACT_CLAMPED_SWIGLU,
     .ffn_norm = "post_attention_norm"},
    {.id = "granitemoe",
     .architecture = "granitemoe",
     .swaps_heads = true,
     .norm_topk = true,
     .out_bias = true,
     .head_dim = true,
     .tied = true,
     .multipliers = true},
    {.id = "minimax_m2",
     .architecture = "minimax-m2",
     .norm_topk = true,
     .qk_norm = AQ_QK_NORM_FULL,
     .head_dim = true,
     .partial_rope = true,
     .correction = true,
     .router = AQ_ROUTER_SIGMOID_TOPK},
    {.id = "glm4_moe",
     .architecture = "glm4moe",
     .reads_norm_topk = true,
     .qk_norm = AQ_QK_NORM_HEAD,
     .may_lack_qk_norm = true,
     .shared = SharedExpert::kPlain,
     .dense_layers = true,
     .head_dim = true,
     .tied = true,
     .routed_scale = true,
     .partial_rope = true,
     .correction = true,
     .router = AQ_ROUTER_SIGMOID_TOPK,
     .ffn_norm = "post_attention_norm"},
    {.id = "deepseek_v2",
     .architecture = "deepseek2",
     .neighbours = true,
     .latent = true,
     .reads_norm_topk = true,
     .shared = SharedExpert::kPlain,
     .dense_layers = true,
     .head_dim = true,
     .tied = true,
     .routed_scale = true,
     .other_scales = false,
     .partial_rope = true},
    {.id = "deepseek_v3",
     .architecture = "deepseek2",
     .neighbours = true,
     .latent = true,
     .reads_norm_topk = true,
     .shared = SharedExpert::kPlain,
     .dense_layers = true,
     .head_dim = true,
     .tied = true,
     .routed_scale = true,
     .other_scales = false,
     .partial_rope = true,
     .correction = true,
     .groups = true,
     .router = AQ_ROUTER_SIGMOID_TOPK},
    {.id = "ernie4_5_moe",
     .architecture = "ernie4_5-moe",
     .neighbours = true,
     .norm_topk = true,
     .shared = SharedExpert::kSized,
     .dense_layers = true,
     .head_dim = true,
     .tied = true,
     .correction = true,
     .layer_step = true},
};

}  // namespace

const GgufFamily& gguf_family(const Model& model) {
  std::vector<std::string> known;
  for (const GgufFamily& family : kFamilies) {
    if (family.id == model.id()) return family;
    known.emplace_back(family.id);
  }
  fail("the family {} cannot be written as GGUF yet; {} can", model.id(), fmt::join(known, ", "));
}

}  // namespace aqhost
