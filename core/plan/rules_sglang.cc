// The rules of SGLang 0.5.23 on an NVIDIA GPU, from the source in sglang/srt:
// layers/quantization/compressed_tensors (get_moe_scheme, _get_scheme_from_parts and schemes/),
// layers/quantization/gptq/gptq.py, layers/quantization/marlin_utils.py and models/. No export was
// run in SGLang.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

#include "plan/engine_rules.h"

namespace aqhost {
namespace {

bool marlin_has(int32_t group) {
  return std::find(kMarlinGroups.begin(), kMarlinGroups.end(), group) != kMarlinGroups.end();
}

/// Integers in packed words, or in GPTQ's layout. They run with Marlin; there is no fallback to
/// another kernel.
void check_packed_expert_in_sglang(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const std::string& name = m.module->name;
  const int64_t rows = m.module->out_features, cols = m.module->in_features;
  if (s.rounds_inputs()) {
    if (s.bits == 4 && s.symmetric && s.group == 128 && (s.inputs == "int8" || s.inputs == "fp8"))
      f.note(name, fmt::format("experts in {} run on GPUs of compute capability 9.0 (Hopper) "
                               "alone, with inputs in FP8",
                               s.text));
    else
      f.refuse(name, no_kernel("experts", s));
  } else if (s.bits != 4 && s.bits != 8) {
    f.refuse(name, fmt::format("experts of {} bits have no kernel", s.bits));
  } else if (!s.symmetric) {
    f.wrong(name, "the zero points of experts are unpacked in AWQ's order, which is another");
  } else if (!marlin_has(s.group)) {
    f.refuse(name, fmt::format("experts in groups of {} have no kernel, 32, 64, 128 and -1 have",
                               s.group));
  } else if (is_role(m, {AQ_ROLE_FFN_DOWN}) ? rows % 128 != 0 || cols % 64 != 0 : cols % 128 != 0) {
    f.refuse(name,
             "kernels of experts want a hidden size that is a multiple of 128, and an inner "
             "size that is one of 64");
  }
}

void check_expert_in_sglang(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const std::string& name = m.module->name;
  if (s.format == "pack-quantized" || s.format == "gptq")
    check_packed_expert_in_sglang(m, s, f);
  else if (s.format == "nvfp4-pack-quantized" && (!s.rounds_inputs() || s.inputs == "nvfp4"))
    return;
  else if (s.format == "int-quantized")
    f.refuse(name, "experts in int8 with inputs in int8 have kernels on NPUs alone");
  else if (s.format != "float-quantized" || s.inputs != "fp8" || s.group != -1)
    f.refuse(name, no_kernel("experts", s));
}

void check_linear_in_sglang(const PlannedModule& m, const StoredAs& s, Findings& f) {
  const bool packed = s.format == "pack-quantized" || s.format == "gptq";
  const bool marlin = (s.bits == 4 || (s.bits == 8 && s.symmetric)) && marlin_has(s.group);
  const bool runs =
      (packed && marlin && !s.rounds_inputs()) ||
      (s.format == "nvfp4-pack-quantized" && (!s.rounds_inputs() || s.inputs == "nvfp4")) ||
      (s.format == "naive-quantized" && !s.rounds_inputs()) ||
      (s.format == "float-quantized" && s.inputs == "fp8") ||
      (s.format == "int-quantized" && s.inputs == "int8");
  if (!runs) f.refuse(m.module->name, no_kernel("linear maps", s));
}

/// Checks what SGLang takes from the top of the config instead of from the experts' own group.
void check_whole(const Plan& plan, const Model& model, Findings& f) {
  std::set<std::string> schemes, files;
  Modules experts;
  for (const PlannedModule& m : plan.modules) {
    if (is_expert(m)) experts.push_back(&m);
    if (!m.format) continue;
    schemes.insert(scheme(m));
    files.insert(StoredAs(m, *plan.container).format);
  }
  if (experts.empty() || !experts.front()->format) return;
  const PlannedModule& first = *experts.front();
  const StoredAs s(first, *plan.container);
  if (s.format == "gptq") {
    if (const PlannedModule* different = other(experts))
      f.refuse(different->module->name,
               mixed("in GPTQ's layout all experts of a model", first, *different));
    return;
  }
  if (s.format == "pack-quantized" && !s.rounds_inputs() && files.size() > 1)
    f.refuse(first.module->name,
             fmt::format("experts in {} are accepted only if all quantized modules of the "
                         "checkpoint are integers without rounded inputs",
                         s.text));
  if (s.format == "pack-quantized" && s.rounds_inputs() && schemes.size() > 1)
    f.refuse(first.module->name,
             fmt::format("experts in {} are accepted only if all quantized modules of the "
                         "checkpoint are in that format",
                         s.text));
  if ((model.id() == "mixtral" || model.id() == "minimax_m2") && schemes.size() > 1)
    f.refuse(first.module->name,
             "the formats of experts are looked up under gate_proj, up_proj and down_proj, which "
             "this family calls otherwise, so all quantized modules must be of one format");
}

/// models/*.py; Qwen3.5's models are in qwen3_5.py and qwen3_5_text.py, ERNIE's in ernie4.py.
const FamiliesOptions& families_of_sglang() {
  static const FamiliesOptions options{
      {"olmoe", {}},
      {"mixtral", {}},
      {"qwen2_moe", {.qkv_bias = true, .acts = true}},
      {"deepseek_moe", {.acts = true}},
      {"qwen3_moe", {.qkv_bias = true, .out_bias = true, .head_dim = true, .acts = true}},
      {"qwen3_next", {.head_dim = true, .acts = true}},
      {"qwen3_5_moe", {.tied = true, .head_dim = true, .acts = true}},
      {"deepseek_v2", {.tied = true, .acts = true}},
      {"deepseek_v3", {.tied = true, .acts = true}},
      {"glm4_moe_lite", {.acts = true}},
      {"glm4_moe", {.qkv_bias = true, .head_dim = true, .acts = true}},
      {"gpt_oss", {.qkv_bias = true, .out_bias = true, .head_dim = true}},
      {"minimax_m2", {.head_dim = true}},
      {"granitemoe", {.tied = true, .acts = true}},
      {"ernie4_5_moe",
       {.qkv_bias = true, .out_bias = true, .tied = true, .head_dim = true, .acts = true}}};
  return options;
}

/// models/deepseek_v2.py, and deepseek_common/deepseek_weight_loader.py: post_load_weights().
void check_latent_in_sglang(const Export& e, const ModelFacts& facts, Findings& f) {
  const Json& config = e.original.config();
  if (facts.type != "glm4_moe_lite")
    check_keys(e, "SGLang", {"topk_method", "scoring_func", "n_group", "topk_group"}, f);
  if (facts.type == "kimi_k2" &&
      !(e.has_file("configuration_deepseek.py") && config.contains("auto_map")))
    f.refuse("config.json",
             "SGLang knows model_type kimi_k2 by its configuration_deepseek.py alone, which must "
             "lie beside config.json and be named there under auto_map, as in the published "
             "checkpoint");
  for (const PlannedModule& m : e.plan.modules) {
    if (!m.format || !is_role(m, {AQ_ROLE_ATTN_KV_B}) || unknown_to_all(m)) continue;
    const std::string format = StoredAs(m, *e.plan.container).format;
    if (format != "float-quantized" && format != "int-quantized")
      f.refuse(m.module->name,
               "kv_b_proj is read dense, or in fp8 or int8 with rounded inputs; a recipe can leave "
               "it dense: {pattern: \"*.kv_b_proj\", skip: true}");
  }
}

void check_model_in_sglang(const Export& e, Findings& f) {
  const ModelFacts facts(e);
  check_model_options(facts, families_of_sglang(), "SGLang", f);
  if (facts.family == "deepseek_moe")
    f.refuse("config.json", "SGLang has DeepSeek-MoE with unquantized experts only");
  if (facts.latent) check_latent_in_sglang(e, facts, f);
  if (facts.family == "minimax_m2")
    check_keys(e, "SGLang", {"rotary_dim", "scoring_func", "use_routing_bias", "use_qk_norm"}, f);
  if (facts.type == "qwen3_5_moe")
    f.note("config.json",
           "it was not checked under which names SGLang looks for the formats of a model with a "
           "vision tower");
  if (facts.family != "gpt_oss") return;
  for (const PlannedModule& m : e.plan.modules)
    if (m.format && is_expert(m))
      f.refuse(m.module->name,
               "the experts of gpt-oss are read in one tensor for all, in BF16 or in the MXFP4 of "
               "OpenAI's checkpoints, and an export has a tensor for each");
}

}  // namespace

void check_sglang(const Export& exported, Findings& findings) {
  check_model_in_sglang(exported, findings);
  check_fused(exported.plan, findings);
  check_whole(exported.plan, exported.model, findings);
  for (const PlannedModule& m : exported.plan.modules) {
    if (!m.format || unknown_to_all(m) || is_role(m, {AQ_ROLE_ROUTER, AQ_ROLE_SHARED_ROUTER}))
      continue;
    const StoredAs s(m, *exported.plan.container);
    if (is_expert(m))
      check_expert_in_sglang(m, s, findings);
    else
      check_linear_in_sglang(m, s, findings);
  }
}

}  // namespace aqhost
