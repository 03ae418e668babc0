// DeepSeek-V3 and R1 (arXiv:2412.19437), V3.2, Kimi-K2, and GLM-4.7-Flash (glm4_moe_lite): latent
// attention, sigmoid scores with a correction bias, and layers of multi-token prediction, which are
// copied and never run.

#include <aq/sdk/hf_latent.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names(
    aq::joined({aq::hf_latent_names(), aq::hf_shared_experts_names(), {aq::hf_correction_bias()}}));

class DeepseekV3 {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "deepseek_v3", "DeepSeek-V3", "1.0.0", "AlphaQuant",
      "DeepSeek-V3 (model_type deepseek_v3, deepseek_v32, kimi_k2 or glm4_moe_lite): "
      "deepseek-ai/DeepSeek-V3, DeepSeek-R1, DeepSeek-V3.2, moonshotai/Kimi-K2, "
      "zai-org/GLM-4.7-Flash"};

  static constexpr const char* kAliases = "deepseek_v32 kimi_k2 glm4_moe_lite";

  static int probe(const nlohmann::json& config, std::string& why) {
    int best = 0;
    for (const auto& [type, architecture] :
         {std::pair{"deepseek_v3", "DeepseekV3ForCausalLM"},
          std::pair{"deepseek_v32", "DeepseekV32ForCausalLM"},
          std::pair{"kimi_k2", "DeepseekV3ForCausalLM"},
          std::pair{"glm4_moe_lite", "Glm4MoeLiteForCausalLM"}}) {
      std::string reason;
      const int score =
          aq::probe_config(config, {.model_type = type, .architecture = architecture}, reason);
      if (score > best) why = reason;
      best = std::max(best, score);
    }
    return best;
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"moe_layer_freq", 1}, {"sliding_window", nullptr}});
    const bool sparse = config.text_or("model_type", "") == "deepseek_v32";
    if (!sparse) aq::hf_full_attention(config);
    config.ignore({"intermediate_size", "first_k_dense_replace"});  // without dense layers
    const std::vector<bool> dense = dense_layers(config);
    const aq_ffn_desc moe = aq::hf_sigmoid_experts(config);
    std::vector<aq::LayerDesc> layers;
    for (const bool is_dense : dense) {
      aq::LayerDesc layer = aq::hf_latent_attention(config);
      layer.attention.rope_interleaved = config.flag_or("rope_interleave", true);
      layer.ffn = is_dense ? aq::hf_dense(config, config.integer("intermediate_size")) : moe;
      layers.push_back(layer);
    }
    aq_model_desc model = aq::hf_model_desc(config);
    std::vector<aq::Copied> copied = aq::hf_prediction_layers(config);
    if (sparse) leave_out_indexers(config, model, copied);
    return aq::hf_decoder(checkpoint, config,
                          {.layers = std::move(layers),
                           .names = kNames,
                           .model = model,
                           .copied = std::move(copied)});
  }

 private:
  /// In V3.2, an indexer chooses index_topk earlier tokens for each token. In sequences of at most
  /// that length it chooses all, and the model computes what V3 computes.
  static void leave_out_indexers(const aq::HfConfig& config, aq_model_desc& model,
                                 std::vector<aq::Copied>& copied) {
    config.ignore({"index_head_dim", "index_n_heads", "layer_types"});
    const int64_t longest = config.integer("index_topk");
    model.max_positions =
        model.max_positions > 0 ? std::min(model.max_positions, longest) : longest;
    for (int32_t l = 0; l < model.n_layers; l++)
      copied.push_back({"model.layers." + std::to_string(l) + ".self_attn.indexer.",
                        "the indexer of sparse attention"});
  }

  /// Which layers are dense: the first first_k_dense_replace, or what mlp_layer_types of
  /// glm4_moe_lite says.
  static std::vector<bool> dense_layers(const aq::HfConfig& config) {
    const auto n = static_cast<std::size_t>(config.count("num_hidden_layers"));
    const bool lite = config.text_or("model_type", "") == "glm4_moe_lite";
    std::vector<bool> dense(n);
    const int32_t first = config.integer_or("first_k_dense_replace", lite ? 1 : 3, 0);
    for (std::size_t l = 0; l < n; l++) dense[l] = static_cast<int32_t>(l) < first;
    return aq::hf_layer_kinds(config, "mlp_layer_types", "dense", "sparse").value_or(dense);
  }
};

}  // namespace

AQ_EXPORT_MODEL(DeepseekV3);
