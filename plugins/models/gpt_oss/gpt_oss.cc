// gpt-oss (arXiv:2508.10925): attention with sinks, in every second layer over a window; biases in
// all linear maps; experts with a clamped SwiGLU, stored in one tensor for all experts.

#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ATTN_SINKS, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.sinks"},
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.router"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
});

class GptOss {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "gpt_oss", "gpt-oss", "1.0.0", "AlphaQuant",
      "gpt-oss (model_type gpt_oss): openai/gpt-oss-20b, openai/gpt-oss-120b"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(config, {.model_type = "gpt_oss", .architecture = "GptOssForCausalLM"},
                            why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    // the published code has this limit, whatever config.json says
    aq::hf_fixed(config, {{"swiglu_limit", 7.0}});
    config.ignore({"sliding_window", "initial_context_length", "experts_per_token"});
    const std::vector<bool> windows = windowed_layers(config);
    aq_ffn_desc ffn =
        aq::hf_experts(config, aq::hf_expert_count(config, {"num_local_experts", "num_experts"}),
                       config.integer("intermediate_size"));
    ffn.activation = AQ_ACT_CLAMPED_SWIGLU;
    ffn.act_alpha = 1.702f;
    ffn.act_limit = 7;
    ffn.norm_topk = 1;  // the softmax over the chosen experts
    std::vector<aq::LayerDesc> layers;
    for (const bool windowed : windows) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.attention.sinks = 1;
      layer.attention.sliding_window = windowed ? config.integer("sliding_window") : 0;
      layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", true);
      layer.router_bias = true;
      layer.ffn = ffn;
      layers.push_back(layer);
    }
    return aq::hf_decoder(checkpoint, config,
                          {.layers = std::move(layers),
                           .names = kNames,
                           .default_rope_theta = 150000,
                           .stacking = {.transposed = true, .interleaved = true, .biases = true}});
  }

 private:
  /// Which layers have a window: as layer_types says, otherwise every second one from the first on.
  static std::vector<bool> windowed_layers(const aq::HfConfig& config) {
    const auto n = static_cast<std::size_t>(config.count("num_hidden_layers"));
    std::vector<bool> windowed(n);
    for (std::size_t l = 0; l < n; l++) windowed[l] = l % 2 == 0;
    return aq::hf_layer_kinds(config, "layer_types", "sliding_attention", "full_attention")
        .value_or(windowed);
  }
};

}  // namespace

AQ_EXPORT_MODEL(GptOss);
