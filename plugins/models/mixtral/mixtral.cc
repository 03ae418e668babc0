// Mixtral (Jiang et al., arXiv:2401.04088): every layer has experts, several heads share a key and
// value head, and the weights of the chosen experts are divided by their sum. Published checkpoints
// name an expert's gate w1, up w3 and down w2.

#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.block_sparse_moe.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.w1"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.w3"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.w2"},
    // the names of transformers 5, which stacks the experts
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.w1"},
});

class Mixtral {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "mixtral", "Mixtral", "1.0.0", "AlphaQuant",
      "Mixtral (model_type mixtral): mistralai/Mixtral-8x7B, Mixtral-8x22B"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config,
        {.model_type = "mixtral",
         .architecture = "MixtralForCausalLM",
         .has = {"num_local_experts", "num_experts_per_tok", "router_aux_loss_coef"},
         .lacks = {"layer_types", "attention_multiplier", "lm_head_bias", "swiglu_limit"}},
        why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"norm_topk_prob", true}});
    aq::hf_full_attention(config);
    aq::LayerDesc layer = aq::hf_attention(config);
    layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
    layer.attention.sliding_window = config.integer_or("sliding_window", 0);
    layer.ffn =
        aq::hf_experts(config, aq::hf_expert_count(config, {"num_local_experts", "num_experts"}),
                       config.integer("intermediate_size"));
    layer.ffn.norm_topk = 1;
    const auto count = static_cast<std::size_t>(config.count("num_hidden_layers"));
    return aq::hf_decoder(
        checkpoint, config,
        {.layers = std::vector(count, layer), .names = kNames, .default_rope_theta = 1e6});
  }
};

}  // namespace

AQ_EXPORT_MODEL(Mixtral);
