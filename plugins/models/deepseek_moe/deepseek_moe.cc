// DeepSeek-MoE (Dai et al., arXiv:2401.06066; model_type deepseek): the first layers are dense, and
// the shared experts are one MLP of their joint size, without a gate.

#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames = aq::hf_names({
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
    {AQ_ROLE_FFN_GATE, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_experts.gate_proj"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_experts.up_proj"},
    {AQ_ROLE_FFN_DOWN, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_experts.down_proj"},
    {AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate_proj"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "model.layers.{L}.mlp.up_proj"},
    {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "model.layers.{L}.mlp.down_proj"},
});

class DeepseekMoe {
 public:
  static constexpr aq::Descriptor kDescriptor{
      "deepseek_moe", "DeepSeek-MoE", "1.0.0", "AlphaQuant",
      "DeepSeek-MoE (model_type deepseek): deepseek-ai/deepseek-moe-16b"};

  static constexpr const char* kAliases = "deepseek";

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(config,
                            {.model_type = "deepseek",
                             .architecture = "DeepseekForCausalLM",
                             .has = {"n_routed_experts", "n_shared_experts",
                                     "first_k_dense_replace", "moe_intermediate_size"},
                             .lacks = {"kv_lora_rank", "n_group", "topk_group"}},
                            why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"sliding_window", nullptr},
                          {"use_sliding_window", false},
                          {"topk_method", "greedy"},
                          {"n_group", 1},
                          {"topk_group", 1}});
    aq::hf_full_attention(config);
    config.ignore({"intermediate_size"});  // a model without dense layers does not use it
    const bool has_experts = config.has("n_routed_experts");
    const aq_ffn_desc moe = has_experts ? experts(config) : aq_ffn_desc{};
    const int32_t first = config.integer_or("first_k_dense_replace", 0, 0);
    const int32_t frequency = config.integer_or("moe_layer_freq", 1);
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < config.count("num_hidden_layers"); l++) {
      aq::LayerDesc layer = aq::hf_attention(config);
      layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
      layer.ffn = has_experts && l >= first && l % frequency == 0
                      ? moe
                      : aq::hf_dense(config, config.integer("intermediate_size"));
      layers.push_back(layer);
    }
    return aq::hf_decoder(checkpoint, config, {.layers = std::move(layers), .names = kNames});
  }

 private:
  static aq_ffn_desc experts(const aq::HfConfig& config) {
    const int32_t inner = config.integer("moe_intermediate_size");
    aq_ffn_desc ffn = aq::hf_experts(config, config.count("n_routed_experts"), inner);
    // the published code normalises only if more than one expert is chosen
    ffn.norm_topk = config.flag_or("norm_topk_prob", false) && ffn.top_k > 1;
    ffn.routed_scale = static_cast<float>(config.number_or("routed_scaling_factor", 1));
    ffn.shared_size = int64_t{inner} * config.integer_or("n_shared_experts", 0, 0);
    const std::string scoring = config.text_or("scoring_func", "softmax");
    if (scoring == "sigmoid") {
      ffn.router = AQ_ROUTER_SIGMOID_TOPK;
    } else if (scoring != "softmax") {
      throw aq::Error(
          "config.json: scoring_func \"" + scoring + "\" is not supported, known: softmax, sigmoid",
          AQ_UNSUPPORTED);
    }
    return ffn;
  }
};

}  // namespace

AQ_EXPORT_MODEL(DeepseekMoe);
