// A decoder whose experts lie as in gpt-oss (arXiv:2508.10925) and, but for the order of rows, in
// Llama 4: one tensor [experts, in, out] for all, gate and up in turn, each with its bias. Router
// and attention projections have biases too; every other layer sees a window. (gpt-oss itself also
// has attention sinks and an activation of its own.)
#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.router"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
});

class OssLike {
 public:
  static constexpr aq::Descriptor kDescriptor{"oss_like", "gpt-oss-like", "1.0.0", "an example",
                                              "stacked experts, gate and up interleaved"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(config,
                            {.model_type = "oss_like", .architecture = "OssLikeForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    std::vector<aq::LayerDesc> layers;
    const int32_t n = config.count("num_hidden_layers");
    const nlohmann::json types = config.has("layer_types") ? config.json()["layer_types"] : nullptr;
    if (!types.is_null() && (!types.is_array() || types.size() != static_cast<std::size_t>(n)))
      config.fail("layer_types", types, std::to_string(n) + " strings");
    for (int32_t l = 0; l < n; l++) {
      const bool sliding =
          types.is_null() ? l % 2 == 0 : types[static_cast<std::size_t>(l)] == "sliding_attention";
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", true);
      layer.attention.sliding_window = sliding ? config.integer_or("sliding_window", 0) : 0;
      layer.ffn = aq::hf_experts(config, config.count("num_local_experts"),
                                 config.integer("intermediate_size"));
      layer.ffn.norm_topk = 1;  // softmax over the chosen is softmax over all, divided by their sum
      layer.router_bias = true;
      layers.push_back(std::move(layer));
    }
    return aq::hf_decoder(checkpoint, config,
                          {.layers = std::move(layers),
                           .names = kNames,
                           .default_rope_theta = 150000.0,
                           .stacking = {.transposed = true, .interleaved = true, .biases = true}});
  }
};

}  // namespace

AQ_EXPORT_MODEL(OssLike);
