// ERNIE 4.5 MoE: interleaved rotary embedding, dense first layers, shared experts without a gate,
// and softmax scores with a correction bias.

#include <aq/sdk/hf_latent.hpp>

namespace {

const std::vector<aq::NameRow> kNames =
    aq::hf_names(aq::joined({{{AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE,
                               "model.layers.{L}.mlp.moe_statics.e_score_correction_bias"}},
                             aq::hf_shared_experts_names()}));

/// The correction bias is stored as [1, experts].
class ErnieModel : public aq::DecoderModel {
 public:
  using DecoderModel::DecoderModel;
  bool find_ref(const aq_tensor_key& key, aq_tensor_ref& out) const override {
    if (!DecoderModel::find_ref(key, out)) return false;
    if (key.role == AQ_ROLE_ROUTER_BIAS) out.index = 0;
    return true;
  }
};

class Ernie45Moe {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "ernie4_5_moe", "ERNIE 4.5 MoE", "1.0.0", "AlphaQuant",
      "ERNIE 4.5 MoE (model_type ernie4_5_moe): baidu/ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "ernie4_5_moe", .architecture = "Ernie4_5_MoeForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"sliding_window", nullptr}});
    const bool biases = config.flag_or("use_bias", false);
    config.ignore({"intermediate_size", "moe_capacity", "moe_gate", "moe_use_aux_free",
                   "num_nextn_predict_layers"});
    aq_ffn_desc moe = experts(config);
    const int32_t n = config.count("num_hidden_layers");
    const int32_t first = config.integer_or("moe_layer_start_index", 1, 0);
    const int32_t interval = config.integer_or("moe_layer_interval", 1);
    const int32_t last = last_layer(config, n);
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < n; l++) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.attention.rope_interleaved = 1;
      layer.qkv_bias = layer.out_bias = layer.ffn_bias = biases;
      layer.ffn = (l + 1) % interval == 0 && l >= first && l <= last
                      ? moe
                      : aq::hf_dense(config, config.integer("intermediate_size"));
      layers.push_back(layer);
    }
    aq_model_desc model = aq::hf_model_desc(config);
    model.tied_embeddings = config.flag_or("tie_word_embeddings", true);
    return aq::hf_decoder<ErnieModel>(checkpoint, config,
                                      {.layers = std::move(layers),
                                       .names = kNames,
                                       .default_rope_theta = 500000,
                                       .model = model,
                                       .copied = {{"model.mtp_", "multi-token prediction"}},
                                       .head_bias = biases});
  }

 private:
  static aq_ffn_desc experts(const aq::HfConfig& config) {
    const int32_t inner = config.integer("moe_intermediate_size");
    aq_ffn_desc ffn = aq::hf_dense(config, inner);
    ffn.kind = AQ_FFN_MOE;
    ffn.router = AQ_ROUTER_SOFTMAX_TOPK;
    ffn.n_experts = aq::hf_expert_count(config, {"moe_num_experts", "num_experts"});
    const char* key = config.has("moe_k") ? "moe_k" : "num_experts_per_tok";
    ffn.top_k = config.integer(key);
    if (ffn.top_k > ffn.n_experts)
      config.fail(key, config.json().at(key), "at most " + std::to_string(ffn.n_experts));
    ffn.norm_topk = 1;
    ffn.norm_min = static_cast<float>(config.number_or("moe_norm_min", 1e-12));
    ffn.shared_size = int64_t{inner} * config.integer_or("moe_num_shared_experts", 2, 0);
    return ffn;
  }

  /// The last layer with experts; -1 in config.json stands for the last layer of the model.
  static int32_t last_layer(const aq::HfConfig& config, int32_t layers) {
    if (!config.has("moe_layer_end_index")) return layers - 1;
    const nlohmann::json& value = config.json()["moe_layer_end_index"];
    if (value == -1) return layers - 1;
    return config.integer("moe_layer_end_index", 0);
  }
};

}  // namespace

AQ_EXPORT_MODEL(Ernie45Moe);
