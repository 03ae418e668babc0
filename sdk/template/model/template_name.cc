// template_name: a mixture-of-experts decoder, described. Change the names to those of your
// family's checkpoints, and read from config.json what differs from layer to layer.
#include <aq/sdk/hf_decoder.hpp>

namespace {

// One row per kind of tensor, without ".weight" and ".bias"; {L} is the layer, {E} the expert.
// hf_names() has the embedding, attention and norms as most checkpoints name them.
const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, 0, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, 0, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, 0, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, 0, "model.layers.{L}.mlp.experts.{E}.down_proj"},
});

class TemplateName {
 public:
  static constexpr aq::Descriptor kDescriptor{"template_name", "TemplateName", "0.1.0", "you",
                                              "models of model_type template_name"};

  // 100: certainly this family, 0: not.
  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(config, "template_name", "TemplateNameForCausalLM", {}, {}, why);
  }

  // Everything comes from config.json. A key that is missing or wrong is an error that names it,
  // and of a key that is set and that nothing here reads the user is warned.
  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < config.count("num_hidden_layers"); l++) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.ffn = aq::hf_experts(config, config.count("num_experts"),
                                 config.integer("moe_intermediate_size"));
      layer.ffn.norm_topk = config.flag_or("norm_topk_prob", true);
      layers.push_back(layer);
    }
    return aq::hf_decoder(config, std::move(layers), 10000.0, kNames, checkpoint);
  }
};

}  // namespace

AQ_EXPORT_MODEL(TemplateName);
