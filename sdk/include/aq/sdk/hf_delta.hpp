// aq/sdk/hf_delta.hpp - what families with gated delta rule layers (Qwen3-Next, Qwen3.5) have in
// common in config.json.
#pragma once

#include <aq/sdk/hf_decoder.hpp>

namespace aq {

/// The attention of each layer: softmax attention with an output gate and q/k norm where
/// layer_types, or every full_attention_interval-th layer, says so, otherwise a gated delta rule.
/// The family must add the FFNs. `fused` says how the projections are stored (aq_attention_desc).
inline std::vector<LayerDesc> hf_delta_layers(const HfConfig& config, bool fused) {
  const auto n = static_cast<std::size_t>(config.count("num_hidden_layers"));
  const int32_t interval = config.integer_or("full_attention_interval", 4);
  std::vector<bool> full(n);
  for (std::size_t l = 0; l < n; l++) full[l] = (l + 1) % static_cast<std::size_t>(interval) == 0;
  full = hf_layer_kinds(config, "layer_types", "full_attention", "linear_attention").value_or(full);
  LayerDesc softmax = hf_attention(config), delta;
  softmax.attention.qk_norm = AQ_QK_NORM_HEAD;
  softmax.attention.output_gate = 1;
  softmax.qkv_bias = softmax.out_bias = config.flag_or("attention_bias", false);
  aq_attention_desc& a = delta.attention;
  a.kind = AQ_ATTN_DELTA;
  a.n_heads = config.integer("linear_num_value_heads");
  a.n_kv_heads = config.integer("linear_num_key_heads");
  a.head_dim = config.integer("linear_key_head_dim");
  a.value_dim = config.integer("linear_value_head_dim");
  a.conv_size = config.integer_or("linear_conv_kernel_dim", 4);
  a.delta_fused = fused;
  if (a.n_heads % a.n_kv_heads != 0)
    throw Error("config.json: linear_num_value_heads " + std::to_string(a.n_heads) +
                " is no multiple of linear_num_key_heads " + std::to_string(a.n_kv_heads));
  std::vector<LayerDesc> layers;
  for (const bool is_full : full) layers.push_back(is_full ? softmax : delta);
  return layers;
}

/// hf_model_desc() with norm_plus_one, because the RMS norms of these models multiply by 1 + w.
inline aq_model_desc hf_delta_model(const HfConfig& config) {
  aq_model_desc model = hf_model_desc(config);
  model.norm_plus_one = 1;
  return model;
}

/// The rows of both kinds of attention, and of the FFNs of Qwen's models, for hf_names().
inline std::vector<NameRow> hf_delta_names() {
  return {
      {AQ_ROLE_ATTN_Q_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_norm"},
      {AQ_ROLE_ATTN_K_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.k_norm"},
      {AQ_ROLE_DELTA_QKVZ, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.in_proj_qkvz"},
      {AQ_ROLE_DELTA_BA, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.in_proj_ba"},
      {AQ_ROLE_DELTA_QKV, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.in_proj_qkv"},
      {AQ_ROLE_DELTA_Z, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.in_proj_z"},
      {AQ_ROLE_DELTA_B, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.in_proj_b"},
      {AQ_ROLE_DELTA_A, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.in_proj_a"},
      {AQ_ROLE_DELTA_CONV, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.conv1d"},
      {AQ_ROLE_DELTA_A_LOG, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.A_log"},
      {AQ_ROLE_DELTA_DT_BIAS, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.dt_bias"},
      {AQ_ROLE_DELTA_NORM, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.norm"},
      {AQ_ROLE_DELTA_OUT, AQ_EXPERT_NONE, "model.layers.{L}.linear_attn.out_proj"},
      {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate"},
      {AQ_ROLE_SHARED_ROUTER, AQ_EXPERT_NONE, "model.layers.{L}.mlp.shared_expert_gate"},
      {AQ_ROLE_FFN_GATE, kEachExpert, "model.layers.{L}.mlp.experts.{E}.gate_proj"},
      {AQ_ROLE_FFN_UP, kEachExpert, "model.layers.{L}.mlp.experts.{E}.up_proj"},
      {AQ_ROLE_FFN_DOWN, kEachExpert, "model.layers.{L}.mlp.experts.{E}.down_proj"},
      {AQ_ROLE_FFN_GATE, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_expert.gate_proj"},
      {AQ_ROLE_FFN_UP, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_expert.up_proj"},
      {AQ_ROLE_FFN_DOWN, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_expert.down_proj"},
      {AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate_proj"},
      {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "model.layers.{L}.mlp.up_proj"},
      {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "model.layers.{L}.mlp.down_proj"},
  };
}

/// Routed experts, and one shared expert with a gate.
inline aq_ffn_desc hf_gated_shared_experts(const HfConfig& config) {
  aq_ffn_desc ffn =
      hf_experts(config, hf_expert_count(config, {"num_experts", "num_local_experts"}),
                 config.integer("moe_intermediate_size"));
  ffn.norm_topk = config.flag_or("norm_topk_prob", true);
  ffn.shared_size = config.integer("shared_expert_intermediate_size");
  ffn.shared_gated = 1;
  return ffn;
}

}  // namespace aq
