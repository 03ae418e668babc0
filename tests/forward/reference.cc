#include "forward/reference.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "torch_doctest.h"

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

/// The softmax of one query's scores, with the head's sink among them if there are sinks.
at::Tensor shares(const FakeModel& m, const at::Tensor& scores, int64_t head) {
  if (m.attention.sinks == 0) return scores.softmax(0);
  const at::Tensor sink = wide(m.tensor(AQ_ROLE_ATTN_SINKS))[head].unsqueeze(0);
  return at::cat({scores, sink}).softmax(0).narrow(0, 0, scores.size(0));
}

double scale_of(const aq_attention_desc& a) {
  return a.scale > 0 ? a.scale : 1 / std::sqrt(a.head_dim);
}

/// Softmax attention of x [tokens, hidden].
at::Tensor attend(const FakeModel& m, const at::Tensor& x) {
  const aq_attention_desc& a = m.attention;
  const int64_t tokens = x.size(0), shared = a.n_heads / a.n_kv_heads;
  at::Tensor projected = linear(m, AQ_ROLE_ATTN_Q, x), gate = at::ones({}, at::kDouble);
  if (a.output_gate != 0) {
    const auto halves =
        projected.reshape({tokens, a.n_heads, 2, a.head_dim}).unbind(2);  // of each head
    projected = halves[0].flatten(1);
    gate = halves[1].sigmoid();
  }
  const at::Tensor q = heads(m, projected, a.n_heads, AQ_ROLE_ATTN_Q_NORM, true);
  const at::Tensor k =
      heads(m, linear(m, AQ_ROLE_ATTN_K, x), a.n_kv_heads, AQ_ROLE_ATTN_K_NORM, true);
  const at::Tensor v = heads(m, linear(m, AQ_ROLE_ATTN_V, x), a.n_kv_heads, 0, false);
  at::Tensor out = at::zeros({tokens, a.n_heads, a.head_dim}, at::kDouble);
  for (int64_t t = 0; t < tokens; t++) {
    const int64_t from = a.sliding_window > 0 ? std::max<int64_t>(0, t + 1 - a.sliding_window) : 0;
    for (int64_t h = 0; h < a.n_heads; h++) {
      const at::Tensor keys = k.select(1, h / shared).slice(0, from, t + 1);
      const at::Tensor p = shares(m, keys.mv(q[t][h]) * scale_of(a), h);
      out[t][h] = v.select(1, h / shared).slice(0, from, t + 1).t().mv(p);
    }
  }
  return linear(m, AQ_ROLE_ATTN_O, (out * gate).flatten(1));
}

/// Latent attention of x [tokens, hidden]: queries and keys are kept in two parts, of which the
/// second rotates.
at::Tensor attend_latent(const FakeModel& m, const at::Tensor& x) {
  const aq_attention_desc& a = m.attention;
  const int64_t tokens = x.size(0), rope = a.rope_dim, plain = a.head_dim - rope;
  at::Tensor q;
  if (a.q_rank > 0)
    q = linear(m, AQ_ROLE_ATTN_Q_B,
               reference_norm(m, AQ_ROLE_ATTN_Q_A_NORM, linear(m, AQ_ROLE_ATTN_Q_A, x), false,
                              a.latent_eps));
  else
    q = linear(m, AQ_ROLE_ATTN_Q, x);
  q = q.reshape({tokens, a.n_heads, a.head_dim}).clone();
  const at::Tensor compressed = linear(m, AQ_ROLE_ATTN_KV_A, x);
  const at::Tensor latent = reference_norm(m, AQ_ROLE_ATTN_KV_A_NORM,
                                           compressed.narrow(1, 0, a.kv_rank), false, a.latent_eps);
  at::Tensor shared_key = compressed.narrow(1, a.kv_rank, rope).clone();
  const at::Tensor kv =
      linear(m, AQ_ROLE_ATTN_KV_B, latent).reshape({tokens, a.n_heads, plain + a.value_dim});
  for (int64_t t = 0; t < tokens; t++) {
    shared_key[t] = rotate(m, shared_key[t], t);
    for (int64_t h = 0; h < a.n_heads; h++)
      q[t][h].narrow(0, plain, rope).copy_(rotate(m, q[t][h].narrow(0, plain, rope), t));
  }
  at::Tensor out = at::zeros({tokens, a.n_heads, a.value_dim}, at::kDouble);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t h = 0; h < a.n_heads; h++) {
      const at::Tensor seen = kv.select(1, h).narrow(0, 0, t + 1);
      const at::Tensor scores = seen.narrow(1, 0, plain).mv(q[t][h].narrow(0, 0, plain)) +
                                shared_key.narrow(0, 0, t + 1).mv(q[t][h].narrow(0, plain, rope));
      const at::Tensor p = (scores * scale_of(a)).softmax(0);
      out[t][h] = seen.narrow(1, plain, a.value_dim).t().mv(p);
    }
  return linear(m, AQ_ROLE_ATTN_O, out.flatten(1));
}

/// The projections of the gated delta rule, [tokens, heads, features].
struct DeltaInputs {
  at::Tensor q, k, v, z, b, a;
};

DeltaInputs delta_inputs(const FakeModel& m, const at::Tensor& x) {
  const aq_attention_desc& a = m.attention;
  const int64_t tokens = x.size(0), groups = a.n_kv_heads, per = a.n_heads / groups;
  const int64_t key = a.head_dim, value = a.value_dim, keys = groups * key;
  const auto split = [](const at::Tensor& t, std::vector<int64_t> sizes) {
    return t.split_with_sizes(sizes, t.dim() - 1);
  };
  if (a.delta_fused != 0) {
    const auto p = split(linear(m, AQ_ROLE_DELTA_QKVZ, x).reshape({tokens, groups, -1}),
                         {key, key, per * value, per * value});
    const auto g = split(linear(m, AQ_ROLE_DELTA_BA, x).reshape({tokens, groups, -1}), {per, per});
    const auto values = [&](const at::Tensor& t) { return t.reshape({tokens, a.n_heads, value}); };
    return {p[0], p[1], values(p[2]), values(p[3]), g[0].flatten(1), g[1].flatten(1)};
  }
  const auto p = split(linear(m, AQ_ROLE_DELTA_QKV, x), {keys, keys, a.n_heads * value});
  return {p[0].reshape({tokens, groups, key}),
          p[1].reshape({tokens, groups, key}),
          p[2].reshape({tokens, a.n_heads, value}),
          linear(m, AQ_ROLE_DELTA_Z, x).reshape({tokens, a.n_heads, value}),
          linear(m, AQ_ROLE_DELTA_B, x),
          linear(m, AQ_ROLE_DELTA_A, x)};
}

/// SiLU of the causal convolution of x [tokens, heads, size], whose first channel is `channel`.
at::Tensor convolve(const FakeModel& m, const at::Tensor& x, int64_t channel) {
  const at::Tensor flat = x.flatten(1);
  const at::Tensor kernel =
      wide(m.tensor(AQ_ROLE_DELTA_CONV)).squeeze(1).narrow(0, channel, flat.size(1));
  at::Tensor out = at::zeros_like(flat);
  const int64_t size = kernel.size(1);
  for (int64_t t = 0; t < x.size(0); t++)
    for (int64_t i = 0; i < size; i++)  // the last value of the kernel is for the token itself
      if (const int64_t from = t - (size - 1) + i; from >= 0)
        out[t] += flat[from] * kernel.select(1, i);
  return (out * out.sigmoid()).reshape(x.sizes());
}

/// The gated delta rule of x [tokens, hidden], token by token.
at::Tensor attend_delta(const FakeModel& m, const at::Tensor& x) {
  const aq_attention_desc& a = m.attention;
  const DeltaInputs in = delta_inputs(m, x);
  const int64_t keys = in.q.flatten(1).size(1), shared = a.n_heads / a.n_kv_heads;
  const auto unit = [](const at::Tensor& t) {
    return t / (t.square().sum(-1, true) + 1e-6).sqrt();
  };
  const at::Tensor q = unit(convolve(m, in.q, 0)) / std::sqrt(a.head_dim);
  const at::Tensor k = unit(convolve(m, in.k, keys)), v = convolve(m, in.v, 2 * keys);
  const at::Tensor beta = in.b.sigmoid();
  const at::Tensor decay = wide(m.tensor(AQ_ROLE_DELTA_A_LOG)).exp() *
                           ((in.a + wide(m.tensor(AQ_ROLE_DELTA_DT_BIAS))).exp() + 1).log() * -1;
  const at::Tensor weight = wide(m.tensor(AQ_ROLE_DELTA_NORM));
  at::Tensor out = at::zeros_like(in.z);
  for (int64_t h = 0; h < a.n_heads; h++) {
    at::Tensor state = at::zeros({a.head_dim, a.value_dim}, at::kDouble);
    for (int64_t t = 0; t < x.size(0); t++) {
      const at::Tensor key = k[t][h / shared];
      state = state * decay[t][h].exp();
      state = state + at::outer(key, beta[t][h] * (v[t][h] - state.t().mv(key)));
      const at::Tensor y = state.t().mv(q[t][h / shared]), gate = in.z[t][h];
      const at::Tensor normed = y / (y.square().mean() + m.desc.norm_eps).sqrt();
      out[t][h] = normed * weight * gate * gate.sigmoid();
    }
  }
  return linear(m, AQ_ROLE_DELTA_OUT, out.flatten(1));
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
  const double limit = m.ffn.act_limit;
  for (int64_t i = 0; i < h.size(0); i++) {
    double g = gate[i].item<double>();
    const double u = up[i].item<double>();
    if (m.ffn.activation == AQ_ACT_CLAMPED_SWIGLU) {
      g = std::min(g, limit);
      h[i] = g / (1 + std::exp(-m.ffn.act_alpha * g)) * (std::clamp(u, -limit, limit) + 1);
    } else {
      h[i] = activate(m.ffn.activation, g) * u;
    }
  }
  return linear(m, AQ_ROLE_FFN_DOWN, h, expert);
}

constexpr double kLeastLead = 1e-5;  // of scores; far above the rounding of float32

/// The FFN's output for one token x [hidden]. FakeModel::route() chooses the experts and weights.
/// The test fails if rounding to float32, which depends on the CPU, may change the choice: it then
/// needs another input or another model.
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
  const at::Tensor lead = scores[order[used - 1]] - scores[order[used]];
  REQUIRE(std::min(lead.item<double>(), std::abs(logits[0].item<double>())) > kLeastLead);
  for (int64_t slot = 0; slot < used; slot++) {
    const auto e = order[slot].item<int64_t>();
    const at::Tensor weight =
        logits[e].sigmoid() * (m.ffn.route_hidden ? 1 + x[0].abs() : at::ones({}));
    out = out + weight * expert_output(m, static_cast<int32_t>(e), x);
  }
  return out;
}

}  // namespace

at::Tensor reference_norm(const FakeModel& m, int32_t role, const at::Tensor& x, bool top,
                          double eps) {
  at::Tensor weight = wide(m.tensor(role, AQ_EXPERT_NONE, AQ_PART_WEIGHT, top));
  if (m.desc.norm_plus_one != 0) weight = weight + 1;
  if (eps == 0) eps = m.desc.norm_eps;
  if (m.desc.norm_kind == AQ_NORM_RMS) return x / (x.square().mean(-1, true) + eps).sqrt() * weight;
  const at::Tensor centered = x - x.mean(-1, true);
  return centered / (centered.square().mean(-1, true) + eps).sqrt() * weight +
         wide(m.tensor(role, AQ_EXPERT_NONE, AQ_PART_BIAS, top));
}

at::Tensor reference_forward(const FakeModel& m, const at::Tensor& x) {
  at::Tensor out = wide(x).clone();
  const double scale = m.desc.residual_scale == 0 ? 1 : m.desc.residual_scale;
  const auto attention = m.attention.kind == AQ_ATTN_LATENT  ? attend_latent
                         : m.attention.kind == AQ_ATTN_DELTA ? attend_delta
                                                             : attend;
  for (int64_t b = 0; b < x.size(0); b++) {
    at::Tensor sequence = out[b];
    sequence += attention(m, reference_norm(m, AQ_ROLE_ATTN_NORM, sequence, false)) * scale;
    const at::Tensor f = reference_norm(m, AQ_ROLE_FFN_NORM, sequence, false);
    for (int64_t t = 0; t < x.size(1); t++) sequence[t] += ffn(m, f[t]) * scale;
  }
  return out;
}

}  // namespace aqhost
