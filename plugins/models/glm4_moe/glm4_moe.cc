// GLM-4.5, 4.6 and 4.7 (glm4_moe; arXiv:2508.06471): grouped-query attention with a partial rotary
// embedding, and experts as those of DeepSeek-V3.

#include <aq/sdk/hf_latent.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names(
    aq::joined({{{AQ_ROLE_ATTN_Q_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_norm"},
                 {AQ_ROLE_ATTN_K_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.k_norm"},
                 aq::hf_correction_bias()},
                aq::hf_shared_experts_names()}));

class Glm4Moe {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "glm4_moe", "GLM-4 MoE", "1.0.0", "AlphaQuant",
      "GLM-4 MoE (model_type glm4_moe): zai-org/GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(config,
                            {.model_type = "glm4_moe", .architecture = "Glm4MoeForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"sliding_window", nullptr}});
    aq::hf_full_attention(config);
    config.ignore({"intermediate_size"});  // a model without dense layers does not use it
    const aq_ffn_desc moe = aq::hf_sigmoid_experts(config);
    const int32_t first = config.integer_or("first_k_dense_replace", 1, 0);
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < config.count("num_hidden_layers"); l++) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.qkv_bias = config.flag_or("attention_bias", false);
      if (config.flag_or("use_qk_norm", false)) layer.attention.qk_norm = AQ_QK_NORM_HEAD;
      layer.ffn = l < first ? aq::hf_dense(config, config.integer("intermediate_size")) : moe;
      layers.push_back(layer);
    }
    return aq::hf_decoder(checkpoint, config,
                          {.layers = std::move(layers),
                           .names = kNames,
                           .partial_rope = 0.5,
                           .copied = aq::hf_prediction_layers(config)});
  }
};

}  // namespace

AQ_EXPORT_MODEL(Glm4Moe);
