// Qwen3-MoE (Yang et al., arXiv:2505.09388; model_type qwen3_moe): q and k normed per head, a head
// size of its own, no shared expert. A model plugin that is all description.
#include <algorithm>
#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ATTN_Q_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_norm"},
    {AQ_ROLE_ATTN_K_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.k_norm"},
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
    {AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate_proj"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "model.layers.{L}.mlp.up_proj"},
    {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "model.layers.{L}.mlp.down_proj"},
});

class Qwen3Moe {
 public:
  static constexpr aq::Descriptor kDescriptor{"qwen3_moe", "Qwen3-MoE", "1.0.0", "an example",
                                              "Qwen3-MoE (model_type qwen3_moe)"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "qwen3_moe", .architecture = "Qwen3MoeForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"use_sliding_window", false}});
    config.ignore({"intermediate_size", "max_window_layers", "sliding_window"});
    const std::vector<int32_t> dense = config.integers_or_empty("mlp_only_layers");
    const int32_t step = config.integer_or("decoder_sparse_step", 1);
    // transformers 5 writes the second
    const char* experts = config.has("num_experts") ? "num_experts" : "num_local_experts";
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < config.count("num_hidden_layers"); l++) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.attention.qk_norm = AQ_QK_NORM_HEAD;
      layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
      const bool listed = std::find(dense.begin(), dense.end(), l) != dense.end();
      if (listed || (l + 1) % step != 0) {
        layer.ffn = aq::hf_dense(config, config.integer("intermediate_size"));
      } else {
        layer.ffn =
            aq::hf_experts(config, config.count(experts), config.integer("moe_intermediate_size"));
        layer.ffn.norm_topk = config.flag_or("norm_topk_prob", false);
      }
      layers.push_back(layer);
    }
    return aq::hf_decoder(checkpoint, config, {.layers = std::move(layers), .names = kNames});
  }
};

}  // namespace

AQ_EXPORT_MODEL(Qwen3Moe);
