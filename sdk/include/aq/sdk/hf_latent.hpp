// aq/sdk/hf_latent.hpp - what families with multi-head latent attention (DeepSeek-V2 and later)
// have in common in config.json.
#pragma once

#include <aq/sdk/hf_decoder.hpp>

namespace aq {

/// Latent attention (AQ_ATTN_LATENT). hf_decoder() adds the rotary embedding and the scale. The
/// norms inside it have the eps 1e-6, whatever config.json says, as in the published code.
inline LayerDesc hf_latent_attention(const HfConfig& config) {
  LayerDesc layer;
  aq_attention_desc& a = layer.attention;
  a.kind = AQ_ATTN_LATENT;
  a.n_heads = config.integer("num_attention_heads");
  a.n_kv_heads = config.integer_or("num_key_value_heads", a.n_heads);
  if (a.n_kv_heads != a.n_heads)
    throw Error("config.json: num_key_value_heads is " + std::to_string(a.n_kv_heads) +
                    ", expected " + std::to_string(a.n_heads) +
                    ", because latent attention makes a key for every head",
                AQ_UNSUPPORTED);
  a.rope_dim = config.integer("qk_rope_head_dim");
  const int64_t size = int64_t{a.rope_dim} + config.integer("qk_nope_head_dim");
  if (size > 1 << 16)
    throw Error("config.json: qk_nope_head_dim and qk_rope_head_dim are " + std::to_string(size) +
                " together, expected at most " + std::to_string(1 << 16));
  a.head_dim = static_cast<int32_t>(size);
  a.value_dim = config.integer("v_head_dim");
  a.q_rank = config.integer_or("q_lora_rank", 0, 0);
  a.kv_rank = config.integer("kv_lora_rank");
  a.latent_eps = 1e-6f;
  layer.qkv_bias = layer.out_bias = config.flag_or("attention_bias", false);
  config.ignore({"head_dim", "qk_head_dim"});  // the sizes above say it all
  return layer;
}

/// The rows of the tensors of latent attention, for hf_names().
inline std::vector<NameRow> hf_latent_names() {
  return {
      {AQ_ROLE_ATTN_Q_A, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_a_proj"},
      {AQ_ROLE_ATTN_Q_A_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_a_layernorm"},
      {AQ_ROLE_ATTN_Q_B, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.q_b_proj"},
      {AQ_ROLE_ATTN_KV_A, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.kv_a_proj_with_mqa"},
      {AQ_ROLE_ATTN_KV_A_NORM, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.kv_a_layernorm"},
      {AQ_ROLE_ATTN_KV_B, AQ_EXPERT_NONE, "model.layers.{L}.self_attn.kv_b_proj"},
  };
}

/// The rows of routed, shared and dense FFNs as DeepSeek names them, for hf_names().
inline std::vector<NameRow> hf_shared_experts_names() {
  return joined(
      {hf_ffn_names(),
       {{AQ_ROLE_FFN_GATE, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_experts.gate_proj"},
        {AQ_ROLE_FFN_UP, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_experts.up_proj"},
        {AQ_ROLE_FFN_DOWN, AQ_EXPERT_SHARED, "model.layers.{L}.mlp.shared_experts.down_proj"}}});
}

/// The row of the bias that is added to the scores by which DeepSeek-V3 chooses experts.
inline NameRow hf_correction_bias() {
  return {AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, "model.layers.{L}.mlp.gate.e_score_correction_bias"};
}

/// The experts of DeepSeek-V3 and of families that took them over: sigmoid scores, a bias that
/// takes part only in the choice, groups that are scored by the sum of their best two, weights that
/// are normalised and scaled, and shared experts without a gate.
inline aq_ffn_desc hf_sigmoid_experts(const HfConfig& config) {
  hf_fixed(config, {{"scoring_func", "sigmoid"}, {"topk_method", "noaux_tc"}});
  const int32_t inner = config.integer("moe_intermediate_size");
  aq_ffn_desc ffn = hf_experts(
      config, hf_expert_count(config, {"n_routed_experts", "num_local_experts", "num_experts"}),
      inner);
  ffn.router = AQ_ROUTER_SIGMOID_TOPK;
  ffn.norm_topk = config.flag_or("norm_topk_prob", true);
  ffn.routed_scale = static_cast<float>(config.number_or("routed_scaling_factor", 1));
  ffn.n_groups = config.integer_or("n_group", 1);
  ffn.top_groups = config.integer_or("topk_group", 1);
  ffn.group_best = ffn.n_groups > 1 ? 2 : 1;
  ffn.shared_size = int64_t{inner} * config.integer_or("n_shared_experts", 0, 0);
  return ffn;
}

}  // namespace aq
