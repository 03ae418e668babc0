// OLMoE (Muennighoff et al., arXiv:2409.02060): every layer has experts, q and k go through a norm
// over all heads before they are split, and the softmax over all experts comes before the top k.

#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ATTN_Q_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_norm"},
    {AQ_ROLE_ATTN_K_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.k_norm"},
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
});

class Olmoe {
 public:
  static constexpr aq::Descriptor kDescriptor{"olmoe", "OLMoE", "1.0.0", "AlphaQuant",
                                              "OLMoE (model_type olmoe): allenai/OLMoE-1B-7B"};

  static constexpr const char* kAliases = "olmo";

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(config,
                            {.model_type = "olmoe",
                             .architecture = "OlmoeForCausalLM",
                             .has = {"num_experts", "num_experts_per_tok", "clip_qkv"},
                             .lacks = {"moe_intermediate_size", "shared_expert_intermediate_size"}},
                            why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"sliding_window", nullptr}, {"use_sliding_window", false}});
    aq::hf_full_attention(config);
    aq::LayerDesc layer = aq::hf_attention(config);
    layer.attention.qk_norm = AQ_QK_NORM_FULL;
    if (config.has("clip_qkv")) layer.attention.clip_qkv = clip(config);
    layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
    layer.ffn =
        aq::hf_experts(config, aq::hf_expert_count(config, {"num_experts", "num_local_experts"}),
                       config.integer("intermediate_size"));
    layer.ffn.norm_topk = config.flag_or("norm_topk_prob", false);
    const auto count = static_cast<std::size_t>(config.count("num_hidden_layers"));
    return aq::hf_decoder(checkpoint, config,
                          {.layers = std::vector(count, layer), .names = kNames});
  }

 private:
  static float clip(const aq::HfConfig& config) {
    const auto value = static_cast<float>(config.number("clip_qkv"));
    if (!(value > 0)) config.fail("clip_qkv", config.json()["clip_qkv"], "a positive number");
    return value;
  }
};

}  // namespace

AQ_EXPORT_MODEL(Olmoe);
