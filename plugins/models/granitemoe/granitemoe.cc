// Granite 3 MoE: config.json gives factors for embeddings, the residual, attention and logits, and
// the matrices of all experts lie in one tensor.

#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.block_sparse_moe.router.layer"},
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.block_sparse_moe.router"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.down_proj"},
});

class GraniteMoe {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "granitemoe", "Granite MoE", "1.0.0", "AlphaQuant",
      "Granite MoE (model_type granitemoe): ibm-granite/granite-3.1-3b-a800m, "
      "granite-3.1-1b-a400m"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "granitemoe", .architecture = "GraniteMoeForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"sliding_window", nullptr}});
    aq::hf_full_attention(config);
    aq::LayerDesc layer = aq::hf_attention(config);
    layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
    layer.attention.scale = factor(config, "attention_multiplier");
    layer.ffn =
        aq::hf_experts(config, aq::hf_expert_count(config, {"num_local_experts", "num_experts"}),
                       config.integer("intermediate_size"));
    layer.ffn.norm_topk = 1;  // the softmax over the chosen experts
    aq_model_desc model = aq::hf_model_desc(config);
    model.embedding_scale = factor(config, "embedding_multiplier");
    model.residual_scale = factor(config, "residual_multiplier");
    model.logit_scale = 1 / factor(config, "logits_scaling");
    const std::string stack = "model.layers.{L}.block_sparse_moe.";
    return aq::hf_decoder(
        checkpoint, config,
        {.layers = std::vector<aq::LayerDesc>(static_cast<std::size_t>(model.n_layers), layer),
         .names = kNames,
         .stacking = {.gate_up = stack + "input_linear.weight",
                      .down = stack + "output_linear.weight"},
         .model = model});
  }

 private:
  static float factor(const aq::HfConfig& config, const char* key) {
    const auto value = static_cast<float>(config.number_or(key, 1));
    if (!(value > 0) || !std::isfinite(value))
      config.fail(key, config.json().at(key), "a positive number");
    return value;
  }
};

}  // namespace

AQ_EXPORT_MODEL(GraniteMoe);
