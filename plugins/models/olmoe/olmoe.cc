// OLMoE (Muennighoff et al., arXiv:2409.02060): every layer a mixture of experts, q and k normed
// over all heads before they are split, softmax over all experts before the top k.

#include <aq/sdk/hf_decoder.hpp>

namespace {

const std::vector<aq::NameRow> kNames{
    {AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, 0, "model.embed_tokens"},
    {AQ_ROLE_FINAL_NORM, AQ_EXPERT_NONE, 0, "model.norm"},
    {AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, 0, "lm_head"},
    {AQ_ROLE_ATTN_NORM, AQ_EXPERT_NONE, 0, "model.layers.{L}.input_layernorm"},
    {AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, 0, "model.layers.{L}.self_attn.q_proj"},
    {AQ_ROLE_ATTN_K, AQ_EXPERT_NONE, 0, "model.layers.{L}.self_attn.k_proj"},
    {AQ_ROLE_ATTN_V, AQ_EXPERT_NONE, 0, "model.layers.{L}.self_attn.v_proj"},
    {AQ_ROLE_ATTN_O, AQ_EXPERT_NONE, 0, "model.layers.{L}.self_attn.o_proj"},
    {AQ_ROLE_ATTN_Q_NORM, AQ_EXPERT_NONE, 0, "model.layers.{L}.self_attn.q_norm"},
    {AQ_ROLE_ATTN_K_NORM, AQ_EXPERT_NONE, 0, "model.layers.{L}.self_attn.k_norm"},
    {AQ_ROLE_FFN_NORM, AQ_EXPERT_NONE, 0, "model.layers.{L}.post_attention_layernorm"},
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, 0, "model.layers.{L}.mlp.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, 0, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, 0, "model.layers.{L}.mlp.experts.{E}.up_proj"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, 0, "model.layers.{L}.mlp.experts.{E}.down_proj"},
    {AQ_ROLE_CUSTOM, AQ_EXPERT_NONE, 0, "model.layers.{L}.self_attn.rotary_emb.inv_freq"},
};

class Olmoe {
 public:
  static constexpr aq::Descriptor kDescriptor{"olmoe", "OLMoE", "1.0.0", "AlphaQuant",
                                              "OLMoE (model_type olmoe): allenai/OLMoE-1B-7B"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_by_name(config, "olmoe", "OlmoeForCausalLM", why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint.config());
    const aq_model_desc model = aq::hf_model_desc(config);
    aq::LayerDesc layer = aq::hf_attention(config);
    layer.attention.qk_norm = AQ_QK_NORM_FULL;
    layer.attention.clip_qkv = static_cast<float>(config.number_or("clip_qkv", 0));
    layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
    layer.ffn.kind = AQ_FFN_MOE;
    layer.ffn.activation = aq::hf_activation(config);
    layer.ffn.router = AQ_ROUTER_SOFTMAX_TOPK;
    layer.ffn.n_experts = config.integer("num_experts");
    layer.ffn.top_k = config.integer("num_experts_per_tok");
    layer.ffn.norm_topk = config.flag_or("norm_topk_prob", false);
    layer.ffn.inner_size = config.integer("intermediate_size");
    const auto rope = std::make_shared<aq::Rope>(config, layer.attention.head_dim, 10000.0);
    layer.attention.rope_dim = rope->dim();
    layer.attention.rope_scale = rope->scale();
    return std::make_unique<aq::DecoderModel>(
        model, std::vector<aq::LayerDesc>(static_cast<std::size_t>(model.n_layers), layer),
        [rope](int64_t seq_len) { return rope->inv_freq(seq_len); }, kNames, checkpoint);
  }
};

}  // namespace

AQ_EXPORT_MODEL(Olmoe);
