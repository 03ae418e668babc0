// aq/sdk/hf_decoder.hpp - what the config.json of most Hugging Face decoders says in the same
// words.
#pragma once

#include <aq/sdk/hf_config.hpp>
#include <aq/sdk/model.hpp>

namespace aq {

/// Sizes, norm and tied embeddings; RMS norm.
inline aq_model_desc hf_model_desc(const HfConfig& config) {
  aq_model_desc desc{};
  desc.n_layers = config.integer("num_hidden_layers");
  desc.hidden_size = config.integer("hidden_size");
  desc.vocab_size = config.integer("vocab_size");
  desc.max_positions = config.integer_or("max_position_embeddings", 0);
  desc.norm_kind = AQ_NORM_RMS;
  desc.norm_eps = static_cast<float>(config.number("rms_norm_eps"));
  desc.tied_embeddings = config.flag_or("tie_word_embeddings", false);
  return desc;
}

/// Heads, key/value heads and head size; the FFN is left to the family.
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

/// hidden_act of a gated FFN.
inline int32_t hf_activation(const HfConfig& config) {
  const std::string act = config.text_or("hidden_act", "silu");
  if (act == "silu" || act == "swish") return AQ_ACT_SILU_GLU;
  if (act == "gelu") return AQ_ACT_GELU_GLU;
  if (act == "gelu_pytorch_tanh" || act == "gelu_new") return AQ_ACT_GELU_TANH_GLU;
  throw Error("config.json: hidden_act \"" + act +
                  "\" is not supported, known: silu, gelu, gelu_pytorch_tanh",
              AQ_UNSUPPORTED);
}

}  // namespace aq
