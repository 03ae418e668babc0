// Qwen3-MoE (Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder; arXiv:2505.09388): queries and keys are
// normed head by head, and config.json gives the size of a head.

#include <algorithm>
#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names(
    aq::joined({{{AQ_ROLE_ATTN_Q_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_norm"},
                 {AQ_ROLE_ATTN_K_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.k_norm"}},
                aq::hf_ffn_names()}));

class Qwen3Moe {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "qwen3_moe", "Qwen3-MoE", "1.0.0", "AlphaQuant",
      "Qwen3-MoE (model_type qwen3_moe): Qwen/Qwen3-30B-A3B, Qwen/Qwen3-235B-A22B, Qwen3-Coder"};

  static constexpr const char* kAliases = "qwen3";

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "qwen3_moe", .architecture = "Qwen3MoeForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    // a model without dense layers, or without windows, does not use these; transformers does not
    // look at max_window_layers
    config.ignore({"intermediate_size", "max_window_layers", "sliding_window"});
    aq_ffn_desc moe =
        aq::hf_experts(config, aq::hf_expert_count(config, {"num_experts", "num_local_experts"}),
                       config.integer("moe_intermediate_size"));
    moe.norm_topk = config.flag_or("norm_topk_prob", false);
    const bool windowed = config.flag_or("use_sliding_window", false);
    if (!windowed) aq::hf_full_attention(config);
    const std::vector<int32_t> dense = config.integers_or_empty("mlp_only_layers");
    const int32_t step = config.integer_or("decoder_sparse_step", 1);
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < config.count("num_hidden_layers"); l++) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.attention.qk_norm = AQ_QK_NORM_HEAD;
      layer.attention.sliding_window = windowed ? config.integer("sliding_window") : 0;
      layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
      const bool listed = std::find(dense.begin(), dense.end(), l) != dense.end();
      layer.ffn = listed || (l + 1) % step != 0
                      ? aq::hf_dense(config, config.integer("intermediate_size"))
                      : moe;
      layers.push_back(layer);
    }
    return aq::hf_decoder(checkpoint, config, {.layers = std::move(layers), .names = kNames});
  }
};

}  // namespace

AQ_EXPORT_MODEL(Qwen3Moe);
