// Qwen3-Next (Qwen3-Next-80B-A3B): three of four layers are gated delta rules, the others softmax
// attention with an output gate; norms multiply by 1 + w; a sigmoid gate weights a shared expert.

#include <aq/sdk/hf_delta.hpp>

namespace {

class Qwen3Next {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "qwen3_next", "Qwen3-Next", "1.0.0", "AlphaQuant",
      "Qwen3-Next (model_type qwen3_next): Qwen/Qwen3-Next-80B-A3B, Qwen/Qwen3-Coder-Next"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "qwen3_next", .architecture = "Qwen3NextForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    config.ignore({"intermediate_size"});  // a model without dense layers does not use it
    aq::hf_fixed(config, {{"sliding_window", nullptr}, {"use_sliding_window", false}});
    const aq_ffn_desc moe = aq::hf_gated_shared_experts(config);
    const std::vector<int32_t> dense = config.integers_or_empty("mlp_only_layers");
    const int32_t step = config.integer_or("decoder_sparse_step", 1);
    std::vector<aq::LayerDesc> layers = aq::hf_delta_layers(config, /*fused=*/true);
    for (int32_t l = 0; l < static_cast<int32_t>(layers.size()); l++) {
      const bool listed = std::find(dense.begin(), dense.end(), l) != dense.end();
      layers[static_cast<std::size_t>(l)].ffn =
          listed || (l + 1) % step != 0 ? aq::hf_dense(config, config.integer("intermediate_size"))
                                        : moe;
    }
    return aq::hf_decoder(checkpoint, config,
                          {.layers = std::move(layers),
                           .names = aq::hf_names(aq::hf_delta_names()),
                           .model = aq::hf_delta_model(config),
                           .partial_rope = 0.25,
                           .copied = {{"mtp.", "multi-token prediction"}}});
  }
};

}  // namespace

AQ_EXPORT_MODEL(Qwen3Next);
