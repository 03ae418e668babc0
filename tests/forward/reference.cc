#include "forward/reference.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace aqhost {
namespace {

at::Tensor wide(const at::Tensor& x) { return x.to(at::kDouble); }

at::Tensor linear(const FakeModel& m, int32_t role, const at::Tensor& x,
                  int32_t expert = AQ_EXPERT_NONE) {
  const at::Tensor y = x.matmul(wide(m.tensor(role, expert)).t());
  return m.has(role, expert, AQ_PART_BIAS) ? y + wide(m.tensor(role, expert, AQ_PART_BIAS)) : y;
}

/// One head of one token, [head_dim], at `position`.
at::Tensor rotate(const FakeModel& m, const at::Tensor& head, int64_t position) {
  at::Tensor out = head.clone();
  const int64_t half = m.attention.rope_dim / 2;
  const double scale = m.attention.rope_scale > 0 ? m.attention.rope_scale : 1;
  for (int64_t i = 0; i < half; i++) {
    const double angle =
        static_cast<double>(position) * m.rope_inv_freq[static_cast<std::size_t>(i)];
    const int64_t first = m.attention.rope_interleaved ? 2 * i : i;
    const int64_t second = m.attention.rope_interleaved ? 2 * i + 1 : i + half;
    const double a = head[first].item<double>(), b = head[second].item<double>();
    out[first] = scale * (a * std::cos(angle) - b * std::sin(angle));
    out[second] = scale * (b * std::cos(angle) + a * std::sin(angle));
  }
  return out;
}

/// Turns x [tokens, heads x head_dim] into [tokens, heads, head_dim], ready for the dot product.
at::Tensor heads(const FakeModel& m, at::Tensor x, int64_t count, int32_t norm, bool rotated) {
  const aq_attention_desc& a = m.attention;
  if (norm != 0 && a.qk_norm == AQ_QK_NORM_FULL) x = reference_norm(m, norm, x, false);
  x = x.reshape({x.size(0), count, a.head_dim});
  if (norm != 0 && a.qk_norm == AQ_QK_NORM_HEAD) x = reference_norm(m, norm, x, false);
  if (a.clip_qkv > 0) x = x.clamp(-a.clip_qkv, a.clip_qkv);
  x = x.clone();
  for (int64_t t = 0; rotated && t < x.size(0); t++)
    for (int64_t h = 0; h < count; h++) x[t][h] = rotate(m, x[t][h], t);
  return x;
}

/// Attention of x [tokens, hidden].
at::Tensor attend(const FakeModel& m, const at::Tensor& x) {
  const aq_attention_desc& a = m.attention;
  const int64_t tokens = x.size(0), shared = a.n_heads / a.n_kv_heads;
  const at::Tensor q = heads(m, linear(m, AQ_ROLE_ATTN_Q, x), a.n_heads, AQ_ROLE_ATTN_Q_NORM, true);
  const at::Tensor k =
      heads(m, linear(m, AQ_ROLE_ATTN_K, x), a.n_kv_heads, AQ_ROLE_ATTN_K_NORM, true);
  const at::Tensor v = heads(m, linear(m, AQ_ROLE_ATTN_V, x), a.n_kv_heads, 0, false);
  const double scale = a.scale > 0 ? a.scale : 1 / std::sqrt(a.head_dim);
  at::Tensor out = at::zeros({tokens, a.n_heads, a.head_dim}, at::kDouble);
  for (int64_t t = 0; t < tokens; t++) {
    const int64_t from = a.sliding_window > 0 ? std::max<int64_t>(0, t + 1 - a.sliding_window) : 0;
    for (int64_t h = 0; h < a.n_heads; h++) {
      const at::Tensor keys = k.select(1, h / shared).slice(0, from, t + 1);
      const at::Tensor p = (keys.mv(q[t][h]) * scale).softmax(0);
      out[t][h] = v.select(1, h / shared).slice(0, from, t + 1).t().mv(p);
    }
  }
  return linear(m, AQ_ROLE_ATTN_O, out.flatten(1));
}

double activate(int32_t activation, double x) {
  using std::numbers::pi;
  if (activation == AQ_ACT_GELU_GLU) return x * (1 + std::erf(x / std::sqrt(2.0))) / 2;
  if (activation == AQ_ACT_GELU_TANH_GLU)
    return x * (1 + std::tanh(std::sqrt(2 / pi) * (x + 0.044715 * x * x * x))) / 2;
  return x / (1 + std::exp(-x));
}

/// The output of one expert for one token x [hidden].
at::Tensor expert_output(const FakeModel& m, int32_t expert, const at::Tensor& x) {
  const at::Tensor gate = linear(m, AQ_ROLE_FFN_GATE, x, expert);
  const at::Tensor up = linear(m, AQ_ROLE_FFN_UP, x, expert);
  at::Tensor h = at::empty_like(gate);
  for (int64_t i = 0; i < h.size(0); i++)
    h[i] = activate(m.ffn.activation, gate[i].item<double>()) * up[i].item<double>();
  return linear(m, AQ_ROLE_FFN_DOWN, h, expert);
}

/// The FFN's output for one token x [hidden]. FakeModel::route() chooses the experts and weights.
at::Tensor ffn(const FakeModel& m, const at::Tensor& x) {
  if (m.ffn.kind == AQ_FFN_DENSE) return expert_output(m, AQ_EXPERT_NONE, x);
  at::Tensor out = at::zeros_like(x);
  if (m.ffn.shared_size > 0) {
    out = expert_output(m, AQ_EXPERT_SHARED, x);
    if (m.ffn.shared_gated) out = out * linear(m, AQ_ROLE_SHARED_ROUTER, x).sigmoid();
  }
  const at::Tensor logits = linear(m, AQ_ROLE_ROUTER, x);
  const at::Tensor scores = m.router_bias ? logits + wide(m.tensor(AQ_ROLE_ROUTER_BIAS)) : logits;
  const at::Tensor order = scores.argsort(int64_t{0}, true);
  const int64_t used = m.ffn.top_k - (logits[0].item<double>() > 0 ? 1 : 0);
  for (int64_t slot = 0; slot < used; slot++) {
    const auto e = order[slot].item<int64_t>();
    const at::Tensor weight =
        logits[e].sigmoid() * (m.ffn.route_hidden ? 1 + x[0].abs() : at::ones({}));
    out = out + weight * expert_output(m, static_cast<int32_t>(e), x);
  }
  return out;
}

}  // namespace

at::Tensor reference_norm(const FakeModel& m, int32_t role, const at::Tensor& x, bool top) {
  const at::Tensor weight = wide(m.tensor(role, AQ_EXPERT_NONE, AQ_PART_WEIGHT, top));
  const double eps = m.desc.norm_eps;
  if (m.desc.norm_kind == AQ_NORM_RMS) return x / (x.square().mean(-1, true) + eps).sqrt() * weight;
  const at::Tensor centered = x - x.mean(-1, true);
  return centered / (centered.square().mean(-1, true) + eps).sqrt() * weight +
         wide(m.tensor(role, AQ_EXPERT_NONE, AQ_PART_BIAS, top));
}

at::Tensor reference_forward(const FakeModel& m, const at::Tensor& x) {
  at::Tensor out = wide(x).clone();
  for (int64_t b = 0; b < x.size(0); b++) {
    at::Tensor sequence = out[b];
    sequence += attend(m, reference_norm(m, AQ_ROLE_ATTN_NORM, sequence, false));
    const at::Tensor f = reference_norm(m, AQ_ROLE_FFN_NORM, sequence, false);
    for (int64_t t = 0; t < x.size(1); t++) sequence[t] += ffn(m, f[t]);
  }
  return out;
}

}  // namespace aqhost
