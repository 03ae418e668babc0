// dots.llm1 (arXiv:2506.05767; model_type dots1): grouped-query attention with q and k normed per
// head and windows in some layers, and experts as those of DeepSeek-V3. A model plugin that is all
// description.
#include <aq/sdk/hf_latent.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names(
    aq::joined({{{AQ_ROLE_ATTN_Q_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_norm"},
                 {AQ_ROLE_ATTN_K_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.k_norm"},
                 aq::hf_correction_bias()},
                aq::hf_shared_experts_names()}));

class Dots1 {
 public:
  static constexpr aq::Descriptor kDescriptor{"dots1", "dots.llm1", "1.0.0", "an example",
                                              "dots.llm1 (model_type dots1)"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(config, {.model_type = "dots1", .architecture = "Dots1ForCausalLM"},
                            why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    config.ignore({"intermediate_size", "max_window_layers", "sliding_window"});
    const aq_ffn_desc moe = aq::hf_sigmoid_experts(config);
    const int32_t dense = config.integer_or("first_k_dense_replace", 0, 0),
                  n = config.count("num_hidden_layers");
    const nlohmann::json types = config.has("layer_types") ? config.json()["layer_types"] : nullptr;
    if (!types.is_null() && (!types.is_array() || types.size() != static_cast<std::size_t>(n)))
      config.fail("layer_types", types, std::to_string(n) + " strings");
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < n; l++) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.attention.qk_norm = AQ_QK_NORM_HEAD;
      layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
      if (!types.is_null() && types[static_cast<std::size_t>(l)] == "sliding_attention")
        layer.attention.sliding_window = config.integer("sliding_window");
      layer.ffn = l < dense ? aq::hf_dense(config, config.integer("intermediate_size")) : moe;
      layers.push_back(layer);
    }
    return aq::hf_decoder(checkpoint, config, {.layers = std::move(layers), .names = kNames});
  }
};

}  // namespace

AQ_EXPORT_MODEL(Dots1);
