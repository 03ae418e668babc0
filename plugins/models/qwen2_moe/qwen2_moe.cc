// Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B; Yang et al., arXiv:2407.10671, section 2.2.2): q, k
// and v have a bias, a sigmoid gate weights a shared expert, and config.json says which layers are
// dense.

#include <algorithm>
#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_SHARED_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.shared_expert_gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
    {AQ_ROLE_FFN_GATE, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_expert.gate_proj"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_expert.up_proj"},
    {AQ_ROLE_FFN_DOWN, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_expert.down_proj"},
    {AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate_proj"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "model.layers.{L}.mlp.up_proj"},
    {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "model.layers.{L}.mlp.down_proj"},
});

class Qwen2Moe {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "qwen2_moe", "Qwen2-MoE", "1.0.0", "AlphaQuant",
      "Qwen2-MoE (model_type qwen2_moe): Qwen/Qwen1.5-MoE-A2.7B, Qwen/Qwen2-57B-A14B"};

  static constexpr const char* kAliases = "qwen qwen2moe";

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config,
        {.model_type = "qwen2_moe",
         .architecture = "Qwen2MoeForCausalLM",
         .has = {"num_experts", "shared_expert_intermediate_size", "decoder_sparse_step"},
         .lacks = {"linear_num_key_heads", "full_attention_interval"}},
        why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    // a model without dense layers, or without windows, does not use these
    config.ignore({"intermediate_size", "max_window_layers", "sliding_window"});
    const aq_ffn_desc moe = experts(config);
    const std::vector<int32_t> dense = config.integers_or_empty("mlp_only_layers");
    const std::vector<int32_t> windows = sliding_windows(config);
    const int32_t step = config.integer_or("decoder_sparse_step", 1);
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < config.count("num_hidden_layers"); l++) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.out_bias = config.flag_or("attention_bias", false);
      layer.qkv_bias = layer.out_bias || config.flag_or("qkv_bias", true);
      layer.attention.sliding_window = windows[static_cast<std::size_t>(l)];
      const bool listed = std::find(dense.begin(), dense.end(), l) != dense.end();
      layer.ffn = listed || (l + 1) % step != 0
                      ? aq::hf_dense(config, config.integer("intermediate_size"))
                      : moe;
      layers.push_back(layer);
    }
    return aq::hf_decoder(checkpoint, config, {.layers = std::move(layers), .names = kNames});
  }

 private:
  static aq_ffn_desc experts(const aq::HfConfig& config) {
    aq_ffn_desc ffn =
        aq::hf_experts(config, aq::hf_expert_count(config, {"num_experts", "num_local_experts"}),
                       config.integer("moe_intermediate_size"));
    ffn.norm_topk = config.flag_or("norm_topk_prob", false);
    ffn.shared_size = config.integer("shared_expert_intermediate_size");
    ffn.shared_gated = 1;
    return ffn;
  }

  /// The window of each layer, or 0 if it has none, by the rule of transformers 5: layer_types says
  /// which layers have one; without it, every second layer below max_window_layers has one,
  /// beginning with the first.
  static std::vector<int32_t> sliding_windows(const aq::HfConfig& config) {
    const auto n = static_cast<std::size_t>(config.count("num_hidden_layers"));
    const bool used = config.flag_or("use_sliding_window", false);
    std::vector<int32_t> windows(n, 0);
    const nlohmann::json types = config.has("layer_types") ? config.json()["layer_types"] : nullptr;
    if (!types.is_null() && (!types.is_array() || types.size() != n))
      config.fail("layer_types", types, std::to_string(n) + " strings");
    for (std::size_t l = 0; l < n; l++) {
      bool sliding = used && l % 2 == 0 &&
                     static_cast<int32_t>(l) < config.integer_or("max_window_layers", 28, 0);
      if (!types.is_null()) {
        sliding = types[l] == "sliding_attention";
        if (!sliding && types[l] != "full_attention")
          config.fail("layer_types", types[l], "full_attention or sliding_attention");
        if (sliding && !used)
          config.fail("layer_types", types[l], "full_attention, as use_sliding_window is not true");
      }
      if (sliding) windows[l] = config.integer("sliding_window");
    }
    return windows;
  }
};

}  // namespace

AQ_EXPORT_MODEL(Qwen2Moe);
