// MiniMax-M2: queries and keys are normed over all heads together, a part of each head rotates, and
// experts are chosen by sigmoid scores with a correction bias.

#include <aq/sdk/hf_decoder.hpp>

namespace {

// transformers 5 can also write the experts stacked, and then under other names
const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ATTN_Q_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_norm"},
    {AQ_ROLE_ATTN_K_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.k_norm"},
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.block_sparse_moe.gate"},
    {AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE,
     "model.layers.{L}.block_sparse_moe.e_score_correction_bias"},
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, "model.layers.{L}.mlp.e_score_correction_bias"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.w1"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.w3"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.block_sparse_moe.experts.{E}.w2"},
});

class MinimaxM2 {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "minimax_m2", "MiniMax-M2", "1.0.0", "AlphaQuant",
      "MiniMax-M2 (model_type minimax_m2): MiniMaxAI/MiniMax-M2, MiniMax-M2.1"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "minimax_m2", .architecture = "MiniMaxM2ForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"use_qk_norm", true},
                          {"qk_norm_type", "per_layer"},
                          {"scoring_func", "sigmoid"},
                          {"use_routing_bias", true},
                          {"shared_intermediate_size", 0},
                          {"attention_bias", false},
                          {"sliding_window", nullptr}});
    aq::hf_full_attention(config);
    check_attention_types(config);
    config.ignore({"mtp_transformer_layers", "use_mtp"});
    aq_ffn_desc ffn =
        aq::hf_experts(config, aq::hf_expert_count(config, {"num_local_experts", "num_experts"}),
                       config.integer("intermediate_size"));
    ffn.router = AQ_ROUTER_SIGMOID_TOPK;
    ffn.norm_topk = 1;
    aq::LayerDesc layer = aq::hf_attention(config);
    layer.attention.qk_norm = AQ_QK_NORM_FULL;
    layer.ffn = ffn;
    // the published config.json gives the number of dimensions, transformers 5 their fraction
    const int32_t size = layer.attention.head_dim;
    const int32_t rotated = config.integer_or("rotary_dim", size);
    if (rotated > size || rotated % 2 != 0)
      config.fail("rotary_dim", config.json().at("rotary_dim"),
                  "an even number up to head_dim, " + std::to_string(size));
    const double fraction = static_cast<double>(rotated) / size;
    const auto n = static_cast<std::size_t>(config.count("num_hidden_layers"));
    return aq::hf_decoder(checkpoint, config,
                          {.layers = std::vector<aq::LayerDesc>(n, layer),
                           .names = kNames,
                           .default_rope_theta = 5e6,
                           .stacking = {.gate_up = "model.layers.{L}.mlp.experts.gate_up_proj",
                                        .down = "model.layers.{L}.mlp.experts.down_proj"},
                           .partial_rope = fraction,
                           .copied = aq::hf_prediction_layers(config, "num_mtp_modules")});
  }

 private:
  /// attn_type_list has a 1 for each layer with softmax attention, the only kind of M2.
  static void check_attention_types(const aq::HfConfig& config) {
    for (const int32_t type : config.integers_or_empty("attn_type_list"))
      if (type != 1)
        config.fail("attn_type_list", config.json()["attn_type_list"], "a 1 for every layer");
  }
};

}  // namespace

AQ_EXPORT_MODEL(MinimaxM2);
