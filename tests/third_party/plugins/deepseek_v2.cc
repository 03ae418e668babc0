// DeepSeek-V2 and V2-Lite (arXiv:2405.04434; model_type deepseek_v2): multi-head latent attention,
// which aqhost does not know, through block-forward; experts in groups, shared experts, YaRN.
#include <aq/sdk/block_forward.hpp>
#include <aq/sdk/hf_decoder.hpp>

namespace {

enum : int32_t {  // beside AQ_ROLE_ATTN_Q and AQ_ROLE_ATTN_O
  kQueryDown = AQ_ROLE_CUSTOM + 1,
  kQueryUp,
  kLatentDown,
  kLatentUp,
  kQueryNorm,
  kLatentNorm
};

aq::NameRow attention_row(int32_t role, const char* name) {
  return {role, AQ_EXPERT_NONE, std::string("model.layers.{L}.self_attn.") + name + ".weight"};
}

const std::vector<aq::NameRow> kNames = aq::hf_names({
    attention_row(kQueryDown, "q_a_proj"),
    attention_row(kQueryUp, "q_b_proj"),
    attention_row(kLatentDown, "kv_a_proj_with_mqa"),
    attention_row(kLatentUp, "kv_b_proj"),
    attention_row(kQueryNorm, "q_a_layernorm"),
    attention_row(kLatentNorm, "kv_a_layernorm"),
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

/// Sizes as config.json names them.
struct Latent {
  explicit Latent(const aq::HfConfig& config)
      : hidden(config.integer("hidden_size")),
        heads(config.integer("num_attention_heads")),
        query_rank(config.integer_or("q_lora_rank", 0)),
        rank(config.integer("kv_lora_rank")),
        nope(config.integer("qk_nope_head_dim")),
        rope(config.integer("qk_rope_head_dim")),
        value(config.integer("v_head_dim")) {
    if (config.integer_or("qk_head_dim", nope + rope) != nope + rope)
      config.fail("qk_head_dim", config.json().at("qk_head_dim"), std::to_string(nope + rope));
  }

  /// The linear maps: role, label, [out, in], stage, input.
  std::vector<aq::CustomLinear> linears() const {
    const int64_t query = int64_t{heads} * (nope + rope);
    std::vector<aq::CustomLinear> all;
    if (query_rank == 0)
      all.push_back({AQ_ROLE_ATTN_Q, "q_proj", query, hidden, 0, 0});
    else
      all.push_back({kQueryDown, "q_a_proj", query_rank, hidden, 0, 0});
    all.push_back({kLatentDown, "kv_a_proj_with_mqa", rank + rope, hidden, 0, 0});
    if (query_rank > 0) all.push_back({kQueryUp, "q_b_proj", query, query_rank, 1, 1});
    all.push_back({kLatentUp, "kv_b_proj", int64_t{heads} * (nope + value), rank, 1, 2});
    all.push_back({AQ_ROLE_ATTN_O, "o_proj", hidden, int64_t{heads} * value, 2, 3});
    return all;
  }

  int32_t hidden, heads, query_rank, rank, nope, rope, value;
};

class DeepseekV2Model : public aq::DecoderModel {
 public:
  DeepseekV2Model(const aq::HfConfig& config, std::vector<aq::LayerDesc> layers,
                  const aq::Checkpoint& checkpoint)
      : DecoderModel(
            {.model = aq::hf_model_desc(config), .layers = std::move(layers), .names = kNames},
            checkpoint),
        sizes_(config),
        rope_(config, sizes_.rope, 10000.0),
        scale_(rope_.softmax_factor() / std::sqrt(static_cast<float>(sizes_.nope + sizes_.rope))) {}

  const void* extension(const char* id) const override {
    return std::string_view(id) == AQ_EXT_BLOCK_FORWARD ? aq::block_forward_of<DeepseekV2Model>()
                                                        : nullptr;
  }

  void attention(const aq::ForwardCall& call) const {
    const int32_t heads = sizes_.heads, rank = sizes_.rank, nope = sizes_.nope, rope = sizes_.rope,
                  value = sizes_.value;
    const int64_t head = nope + rope;
    const aq::Rows q = query(call),
                   down = call.linear(at(call, kLatentDown), call.x(), rank + rope);
    const aq::Rows latent = call.rows(rank);
    for (int64_t t = 0; t < latent.rows; t++) std::copy_n(down[t], rank, latent[t]);
    aq::rms_norm(latent, call.vector(key(call, kLatentNorm), rank), kLatentEps);
    const aq::Rows up = call.linear(at(call, kLatentUp), latent, int64_t{heads} * (nope + value));

    const aq::Rows k = call.rows(heads * head), v = call.rows(int64_t{heads} * value);
    const float* inv_freq = rope_.inv_freq(0);
    for (int64_t t = 0; t < q.rows; t++) {
      const auto rotate = [&](float* part) {
        aq::rotate_pairs(part, rope, call.positions()[t], inv_freq, rope_.scale());
      };
      float* shared = down[t] + rank;  // the part of k that all heads share
      rotate(shared);
      for (int64_t h = 0; h < heads; h++) {
        rotate(q[t] + h * head + nope);
        const float* from = up[t] + h * (nope + value);
        std::copy_n(from, nope, k[t] + h * head);
        std::copy_n(shared, rope, k[t] + h * head + nope);
        std::copy_n(from + nope, value, v[t] + h * value);
      }
    }
    const aq::Rows context = call.attend(q, k, v, heads, heads, scale_);
    call.linear(at(call, AQ_ROLE_ATTN_O), context, call.y());
  }

 private:
  static constexpr float kLatentEps = 1e-6f;  // whatever rms_norm_eps is

  static aq_tensor_key key(const aq::ForwardCall& call, int32_t role) {
    return {call.layer(), role, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
  }
  uint32_t at(const aq::ForwardCall& call, int32_t role) const {
    return module_index(call.layer(), role);
  }

  aq::Rows query(const aq::ForwardCall& call) const {
    const int64_t size = int64_t{sizes_.heads} * (sizes_.nope + sizes_.rope);
    if (sizes_.query_rank == 0) return call.linear(at(call, AQ_ROLE_ATTN_Q), call.x(), size);
    const aq::Rows down = call.linear(at(call, kQueryDown), call.x(), sizes_.query_rank);
    aq::rms_norm(down, call.vector(key(call, kQueryNorm), sizes_.query_rank), kLatentEps);
    return call.linear(at(call, kQueryUp), down, size);
  }

  Latent sizes_;
  aq::Rope rope_;
  float scale_;
};

class DeepseekV2 {
 public:
  static constexpr aq::Descriptor kDescriptor{"deepseek_v2", "DeepSeek-V2", "1.0.0", "an example",
                                              "DeepSeek-V2 and V2-Lite (model_type deepseek_v2)"};

  static int probe(const nlohmann::json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "deepseek_v2", .architecture = "DeepseekV2ForCausalLM"}, why);
  }

  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::hf_fixed(config, {{"attention_bias", false},
                          {"mlp_bias", false},
                          {"norm_topk_prob", false},
                          {"scoring_func", "softmax"},
                          {"moe_layer_freq", 1}});
    config.ignore(
        {"head_dim", "intermediate_size", "n_group", "num_key_value_heads", "topk_group"});
    const int32_t dense = config.integer_or("first_k_dense_replace", 0, 0);
    std::vector<aq::LayerDesc> layers;
    for (int32_t l = 0; l < config.count("num_hidden_layers"); l++) {
      aq::LayerDesc layer;
      layer.attention.kind = AQ_ATTN_CUSTOM;
      layer.attention_linears = Latent(config).linears();
      layer.ffn =
          l < dense ? aq::hf_dense(config, config.integer("intermediate_size")) : experts(config);
      layers.push_back(std::move(layer));
    }
    return std::make_unique<DeepseekV2Model>(config, std::move(layers), checkpoint);
  }

 private:
  static aq_ffn_desc experts(const aq::HfConfig& config) {
    const int32_t inner = config.integer("moe_intermediate_size");
    aq_ffn_desc ffn = aq::hf_experts(config, config.count("n_routed_experts"), inner);
    ffn.routed_scale = static_cast<float>(config.number_or("routed_scaling_factor", 1));
    ffn.shared_size = int64_t{inner} * config.integer_or("n_shared_experts", 0, 0);
    const std::string method = config.text_or("topk_method", "greedy");
    if (method == "group_limited_greedy") {
      ffn.n_groups = config.integer("n_group");
      ffn.top_groups = config.integer("topk_group");
    } else if (method != "greedy") {
      throw aq::Error(
          "config.json: topk_method is \"" + method + "\", expected greedy or group_limited_greedy",
          AQ_UNSUPPORTED);
    }
    return ffn;
  }
};

}  // namespace

AQ_EXPORT_MODEL(DeepseekV2);
