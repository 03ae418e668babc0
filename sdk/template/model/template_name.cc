// template_name: a description of a mixture-of-experts decoder. Change the names to those of your
// family's checkpoints, and read from config.json what differs from layer to layer.
#include <aq/sdk/hf_decoder.hpp>

namespace {

// There is one row for each kind of tensor, without ".weight" and ".bias"; {L} is the layer, {E}
// the expert. hf_names() adds the rows of embedding, attention and norms that most checkpoints
// share.
const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
});

class TemplateName {
 public:
  static constexpr aq::Descriptor kDescriptor{"template_name", "TemplateName", "0.1.0", "you",
                                              "models of model_type template_name"};

  // From 100, certainly this family, to 0, certainly not.
  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "template_name", .architecture = "TemplateNameForCausalLM"}, why);
  }

  // Everything comes from config.json. A key that is missing or wrong is an error that names it.
  // The user is warned of keys that are set and that this code does not read.
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
    return aq::hf_decoder(checkpoint, config, {.layers = std::move(layers), .names = kNames});
  }
};

}  // namespace

AQ_EXPORT_MODEL(TemplateName);
