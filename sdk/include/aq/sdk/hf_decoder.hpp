// aq/sdk/hf_decoder.hpp - reads the keys that config.json of most Hugging Face decoders has in
// common.
#pragma once

#include <algorithm>
#include <aq/sdk/decoder.hpp>
#include <aq/sdk/hf_config.hpp>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace aq {

/// Sizes, RMS norm and tied embeddings.
inline aq_model_desc hf_model_desc(const HfConfig& config) {
  aq_model_desc desc{};
  desc.n_layers = config.count("num_hidden_layers");
  desc.hidden_size = config.integer("hidden_size");
  desc.vocab_size = config.integer("vocab_size");
  desc.max_positions = config.integer_or("max_position_embeddings", 0);
  desc.norm_kind = AQ_NORM_RMS;
  desc.norm_eps = static_cast<float>(config.number("rms_norm_eps"));
  desc.tied_embeddings = config.flag_or("tie_word_embeddings", false);
  return desc;
}

/// Number of heads, number of key/value heads and head size. The family must add the FFN.
inline LayerDesc hf_attention(const HfConfig& config) {
  LayerDesc layer;
  aq_attention_desc& a = layer.attention;
  a.kind = AQ_ATTN_STANDARD;
  a.n_heads = config.integer("num_attention_heads");
  a.n_kv_heads = config.integer_or("num_key_value_heads", a.n_heads);
  const int32_t hidden = config.integer("hidden_size");
  if (!config.has("head_dim") && hidden % a.n_heads != 0)
    throw Error("config.json: hidden_size " + std::to_string(hidden) +
                " is no multiple of num_attention_heads " + std::to_string(a.n_heads));
  a.head_dim = config.integer_or("head_dim", hidden / a.n_heads);
  if (a.n_heads % a.n_kv_heads != 0)
    throw Error("config.json: num_attention_heads " + std::to_string(a.n_heads) +
                " is no multiple of num_key_value_heads " + std::to_string(a.n_kv_heads));
  return layer;
}

/// Checks options for which a family supports only one value. Throws an Error that names the first
/// option that config.json sets to another value.
inline void hf_fixed(const HfConfig& config,
                     std::initializer_list<std::pair<const char*, nlohmann::json>> options) {
  for (const auto& [key, value] : options)
    if (config.has(key) && config.json().at(key) != value)
      throw Error(std::string("config.json: ") + key + " is " + config.json().at(key).dump() +
                      ", which is not supported for this model_type, expected " + value.dump(),
                  AQ_UNSUPPORTED);
}

/// The number of experts of a layer, read from the first of `keys` that config.json sets;
/// transformers accepts some of these keys in place of others (its attribute_map). Throws an Error
/// if two of them are set to different numbers.
inline int32_t hf_expert_count(const HfConfig& config, std::initializer_list<const char*> keys) {
  const char* chosen = *keys.begin();
  for (const char* key : keys) {
    if (!config.has(key)) continue;
    if (config.has(chosen) && config.json().at(key) != config.json().at(chosen))
      config.fail(key, config.json().at(key),
                  config.json().at(chosen).dump() + ", as " + chosen + " says");
    if (!config.has(chosen)) chosen = key;
  }
  return config.count(chosen);
}

/// A list of config.json that names one of two kinds for every layer, such as layer_types: whether
/// each is `kind`. Returns nullopt if config.json has no such list. Another length, or a kind that
/// is neither `kind` nor `other`, is an Error.
inline std::optional<std::vector<bool>> hf_layer_kinds(const HfConfig& config, const char* key,
                                                       const std::string& kind,
                                                       const std::string& other) {
  if (!config.has(key)) return std::nullopt;
  const auto n = static_cast<std::size_t>(config.count("num_hidden_layers"));
  const nlohmann::json types = config.json()[key];
  if (!types.is_array() || types.size() != n)
    config.fail(key, types, std::to_string(n) + " strings");
  std::vector<bool> is_kind(n);
  for (std::size_t l = 0; l < n; l++) {
    is_kind[l] = types[l] == kind;
    if (!is_kind[l] && types[l] != other) config.fail(key, types[l], kind + " or " + other);
  }
  return is_kind;
}

/// For families without attention windows. layer_types, if it is there, names the kind of attention
/// of every layer; anything but "full_attention" is an Error.
inline void hf_full_attention(const HfConfig& config) {
  if (!config.has("layer_types")) return;
  const nlohmann::json& types = config.json().at("layer_types");
  const bool full =
      types.is_array() &&
      types.size() == static_cast<std::size_t>(config.count("num_hidden_layers")) &&
      std::all_of(types.begin(), types.end(), [](const auto& t) { return t == "full_attention"; });
  if (!full)
    throw Error("config.json: layer_types is " + types.dump() +
                    ", which is not supported for this model_type, expected \"full_attention\" for "
                    "every layer",
                AQ_UNSUPPORTED);
}

/// The value of hidden_act, for a gated FFN.
inline int32_t hf_activation(const HfConfig& config) {
  const std::string act = config.text_or("hidden_act", "silu");
  if (act == "silu" || act == "swish") return AQ_ACT_SILU_GLU;
  if (act == "gelu") return AQ_ACT_GELU_GLU;
  if (act == "gelu_pytorch_tanh" || act == "gelu_new") return AQ_ACT_GELU_TANH_GLU;
  throw Error("config.json: hidden_act \"" + act +
                  "\" is not supported, known: silu, gelu, gelu_pytorch_tanh",
              AQ_UNSUPPORTED);
}

/// An FFN with `n_experts` routed experts of inner size `inner`, of which num_experts_per_tok see
/// each token. The router takes the softmax over all experts, then the top k.
inline aq_ffn_desc hf_experts(const HfConfig& config, int32_t n_experts, int32_t inner) {
  aq_ffn_desc ffn{};
  ffn.kind = AQ_FFN_MOE;
  ffn.activation = hf_activation(config);
  ffn.router = AQ_ROUTER_SOFTMAX_TOPK;
  ffn.n_experts = n_experts;
  ffn.top_k = config.integer("num_experts_per_tok");
  ffn.inner_size = inner;
  if (ffn.top_k > n_experts)
    throw Error("config.json: num_experts_per_tok is " + std::to_string(ffn.top_k) +
                ", the model has " + std::to_string(n_experts) + " experts");
  return ffn;
}

/// A dense FFN of inner size `inner`.
inline aq_ffn_desc hf_dense(const HfConfig& config, int32_t inner) {
  aq_ffn_desc ffn{};
  ffn.kind = AQ_FFN_DENSE;
  ffn.activation = hf_activation(config);
  ffn.inner_size = inner;
  return ffn;
}

/// The rows that nearly all decoders share, followed by the rows of a family's own tensors.
inline std::vector<NameRow> hf_names(const std::vector<NameRow>& family) {
  std::vector<NameRow> rows{
      {AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, "model.embed_tokens"},
      {AQ_ROLE_FINAL_NORM, AQ_EXPERT_NONE, "model.norm"},
      {AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, "lm_head"},
      {AQ_ROLE_ATTN_NORM, AQ_EXPERT_NONE, "model.layers.{L}.input_layernorm"},
      {AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_proj"},
      {AQ_ROLE_ATTN_K, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.k_proj"},
      {AQ_ROLE_ATTN_V, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.v_proj"},
      {AQ_ROLE_ATTN_O, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.o_proj"},
      {AQ_ROLE_FFN_NORM, AQ_EXPERT_NONE, "model.layers.{L}.post_attention_layernorm"},
      {AQ_ROLE_CUSTOM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.rotary_emb.inv_freq"},
  };
  rows.insert(rows.end(), family.begin(), family.end());
  return rows;
}

/// The rows of a router, of routed experts and of dense FFNs, as most families name them, for
/// hf_names().
inline std::vector<NameRow> hf_ffn_names() {
  return {
      {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
      {AQ_ROLE_FFN_GATE, kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
      {AQ_ROLE_FFN_UP, kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
      {AQ_ROLE_FFN_DOWN, kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
      {AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate_proj"},
      {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "model.layers.{L}.mlp.up_proj"},
      {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "model.layers.{L}.mlp.down_proj"},
  };
}

/// Several lists of rows as one.
inline std::vector<NameRow> joined(std::initializer_list<std::vector<NameRow>> lists) {
  std::vector<NameRow> all;
  for (const std::vector<NameRow>& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

/// What a family adds to config.json.
struct HfDecoderSpec {
  std::vector<LayerDesc> layers{};  // one for each of num_hidden_layers
  std::vector<NameRow> names{};
  double default_rope_theta = 10000.0;  // used if config.json has no rope_theta
  Stacking stacking{};
  std::optional<aq_model_desc> model{};  // in place of hf_model_desc()
  /// The part of a head that rotates if config.json has no partial_rotary_factor. Without a value,
  /// the family supports only whole heads.
  std::optional<double> partial_rope{};
  std::vector<Copied> copied{};
  bool head_bias = false;
};

/// The layers of multi-token prediction that lie behind the others in a checkpoint. `key` of
/// config.json has their number.
inline std::vector<Copied> hf_prediction_layers(const HfConfig& config,
                                                const char* key = "num_nextn_predict_layers") {
  std::vector<Copied> copied;
  const int32_t layers = config.count("num_hidden_layers");
  for (int32_t i = 0; i < std::min(config.integer_or(key, 0, 0), 64); i++)
    copied.push_back(
        {"model.layers." + std::to_string(layers + i) + ".", "multi-token prediction"});
  return copied;
}

/// Makes the adapter, with rotary embeddings as config.json describes them. `Model` is DecoderModel
/// or a class derived from it.
template <typename Model = DecoderModel>
std::unique_ptr<ModelAdapter> hf_decoder(const Checkpoint& checkpoint, const HfConfig& config,
                                         HfDecoderSpec spec) {
  std::vector<LayerDesc>& layers = spec.layers;
  if (layers.empty()) throw Error("the adapter describes no layer", AQ_INTERNAL);
  const aq_attention_desc* attends = nullptr;  // the first layer that is not a gated delta rule
  int64_t experts = 0;
  for (const LayerDesc& layer : layers) {
    experts += layer.ffn.n_experts;
    if (attends == nullptr && layer.attention.kind != AQ_ATTN_DELTA) attends = &layer.attention;
  }
  if (attends == nullptr)
    throw Error("config.json: no layer has softmax attention, which is not supported",
                AQ_UNSUPPORTED);
  const bool ffn_bias = layers.front().ffn_bias;
  if (!ffn_bias) hf_fixed(config, {{"mlp_bias", false}});
  hf_fixed(config, {{"attn_logit_softcapping", nullptr}, {"final_logit_softcapping", nullptr}});
  if (attends->kind != AQ_ATTN_LATENT) hf_fixed(config, {{"kv_lora_rank", nullptr}});
  if (attends->qk_norm == AQ_QK_NORM_NONE) hf_fixed(config, {{"use_qk_norm", false}});
  if (!spec.partial_rope) hf_fixed(config, {{"partial_rotary_factor", 1}});
  if (experts > 1 << 18)
    throw Error("config.json: its layers have " + std::to_string(experts) +
                " experts together, expected at most " + std::to_string(1 << 18));
  // of a head of latent attention, only a part of its own can rotate
  const int32_t head = attends->kind == AQ_ATTN_LATENT ? attends->rope_dim : attends->head_dim;
  const auto rope =
      std::make_shared<Rope>(config, head, spec.default_rope_theta, spec.partial_rope.value_or(1));
  if (!spec.partial_rope && rope->dim() != head)
    throw Error(
        "config.json: the rope setting partial_rotary_factor is not supported for this model_type",
        AQ_UNSUPPORTED);
  for (LayerDesc& layer : layers) {
    aq_attention_desc& a = layer.attention;
    if (a.kind == AQ_ATTN_DELTA) continue;
    a.rope_dim = rope->dim();
    a.rope_scale = rope->scale();
    if (a.kind == AQ_ATTN_LATENT)
      a.scale = rope->softmax_factor() / std::sqrt(static_cast<float>(a.head_dim));
  }
  return std::make_unique<Model>(
      DecoderSpec{.model = spec.model ? *spec.model : hf_model_desc(config),
                  .layers = std::move(layers),
                  .names = std::move(spec.names),
                  .inv_freq = [rope](int64_t seq_len) { return rope->inv_freq(seq_len); },
                  .stacking = std::move(spec.stacking),
                  .copied = std::move(spec.copied),
                  .head_bias = spec.head_bias},
      checkpoint);
}

}  // namespace aq
