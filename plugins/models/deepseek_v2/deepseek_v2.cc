// DeepSeek-V2 (arXiv:2405.04434) and V2-Lite: latent attention, and experts that are chosen by
// softmax scores, from all experts or from the groups with the best ones.

#include <aq/sdk/hf_latent.hpp>

namespace {

const std::vector<aq::NameRow> kNames =
    aq::hf_names(aq::joined({aq::hf_latent_names(), aq::hf_shared_experts_names()}));

class DeepseekV2 {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "deepseek_v2", "DeepSeek-V2", "1.0.0", "AlphaQuant",
      "DeepSeek-V2 (model_type deepseek_v2): deepseek-ai/DeepSeek-V2, DeepSeek-V2-Lite"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "deepseek_v2", .architecture = "DeepseekV2ForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    // the published models leave the weights as they are
    aq::hf_fixed(config, {{"moe_layer_freq", 1},
                          {"scoring_func", "softmax"},
                          {"norm_topk_prob", false},
                          {"sliding_window", nullptr}});
    aq::hf_full_attention(config);
    config.ignore({"intermediate_size"});  // a model without dense layers does not use it
    const aq_ffn_desc moe = experts(config);
    const int32_t first = config.integer_or("first_k_dense_replace", 0, 0);
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < config.count("num_hidden_layers"); l++) {
      aq::LayerDesc layer = aq::hf_latent_attention(config);
      layer.attention.rope_interleaved = 1;
      layer.ffn_bias = config.flag_or("mlp_bias", false);
      layer.ffn = l < first ? aq::hf_dense(config, config.integer("intermediate_size")) : moe;
      layers.push_back(layer);
    }
    return aq::hf_decoder(checkpoint, config, {.layers = std::move(layers), .names = kNames});
  }

 private:
  static aq_ffn_desc experts(const aq::HfConfig& config) {
    const int32_t inner = config.integer("moe_intermediate_size");
    aq_ffn_desc ffn = aq::hf_experts(
        config, aq::hf_expert_count(config, {"n_routed_experts", "num_experts"}), inner);
    ffn.routed_scale = static_cast<float>(config.number_or("routed_scaling_factor", 1));
    ffn.shared_size = int64_t{inner} * config.integer_or("n_shared_experts", 0, 0);
    const std::string method = config.text_or("topk_method", "greedy");
    if (method == "group_limited_greedy") {
      ffn.n_groups = config.integer("n_group");
      ffn.top_groups = config.integer("topk_group");
    } else if (method == "greedy") {
      config.ignore({"n_group", "topk_group"});
    } else {
      throw aq::Error("config.json: topk_method \"" + method +
                          "\" is not supported, known: greedy, group_limited_greedy",
                      AQ_UNSUPPORTED);
    }
    return ffn;
  }
};

}  // namespace

AQ_EXPORT_MODEL(DeepseekV2);
