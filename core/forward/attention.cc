#include "forward/attention.h"

#include <cmath>
#include <optional>
#include <utility>

#include "base/error.h"
#include "forward/delta_rule.h"
#include "forward/norm.h"
#include "forward/rotary.h"
#include "forward/softmax_attention.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

aq_tensor_key attention_key(int32_t layer, int32_t role) {
  return {layer, role, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
}

/// Reads a small tensor of a layer's attention, which is float32 on the device of `options`.
at::Tensor read_parameter(const Source& source, const Model& model, int32_t layer, int32_t role,
                          const std::vector<int64_t>& shape, const at::TensorOptions& options) {
  const auto ref = model.find_ref(attention_key(layer, role));
  if (!ref) fail("model \"{}\" has no tensor of layer {}, role {}", model.id(), layer, role);
  return read_tensor(source, *ref, shape).to(options.dtype(at::kFloat));
}

/// Grouped-query attention with q/k norm, clipping, rotary embedding, windows, sinks, output gate.
class StandardAttention : public Attention {
 public:
  StandardAttention(const Source& source, const Model& model, int32_t layer, int64_t seq_len,
                    const AttentionDesc& desc, const at::TensorOptions& options)
      : Attention(desc, model.desc().hidden_size), desc_(desc), rotary_(desc, seq_len, options) {
    if (desc.sinks)
      sinks_ = read_parameter(source, model, layer, AQ_ROLE_ATTN_SINKS, {desc.n_heads}, options);
    if (desc.qk_norm == AQ_QK_NORM_NONE) return;
    const bool full = desc.qk_norm == AQ_QK_NORM_FULL;
    const int64_t q = full ? int64_t{desc.n_heads} * desc.head_dim : desc.head_dim;
    const int64_t k = full ? int64_t{desc.n_kv_heads} * desc.head_dim : desc.head_dim;
    q_norm_.emplace(source, model, attention_key(layer, AQ_ROLE_ATTN_Q_NORM), q, options);
    k_norm_.emplace(source, model, attention_key(layer, AQ_ROLE_ATTN_K_NORM), k, options);
  }

  Tensors advance(std::size_t, Tensors tensors, const Apply& apply) const override {
    const at::Tensor& a = tensors.front();
    at::Tensor q = apply(AQ_ROLE_ATTN_Q, a), gate;
    at::Tensor k = apply(AQ_ROLE_ATTN_K, a), v = apply(AQ_ROLE_ATTN_V, a);
    if (desc_.output_gate) {
      const at::Tensor both = q.unflatten(2, {int64_t{desc_.n_heads}, int64_t{2} * desc_.head_dim});
      q = both.narrow(3, 0, desc_.head_dim).flatten(2);
      gate = both.narrow(3, desc_.head_dim, desc_.head_dim).flatten(2);
    }
    q = heads(q, desc_.n_heads, q_norm_, true);
    k = heads(k, desc_.n_kv_heads, k_norm_, true);
    v = heads(v, desc_.n_kv_heads, std::nullopt, false);
    at::Tensor context = softmax_attention(q, k, v, desc_.scale, desc_.sliding_window, sinks_);
    return {gate.defined() ? context * at::sigmoid(gate) : context};
  }

 private:
  /// Turns [batch, tokens, count x size] into [batch, tokens, count, size].
  at::Tensor heads(const at::Tensor& x, int64_t count, const std::optional<Norm>& norm,
                   bool rotated) const {
    at::Tensor y = x;
    if (norm && desc_.qk_norm == AQ_QK_NORM_FULL) y = (*norm)(y);
    y = y.unflatten(2, {count, desc_.head_dim});
    if (norm && desc_.qk_norm == AQ_QK_NORM_HEAD) y = (*norm)(y);
    if (desc_.clip_qkv > 0) y = y.clamp(-desc_.clip_qkv, desc_.clip_qkv);
    y = y.contiguous();
    if (rotated) rotary_(y);
    return y;
  }

  AttentionDesc desc_;
  Rotary rotary_;
  std::optional<Norm> q_norm_, k_norm_;
  at::Tensor sinks_;  // [heads] or undefined
};

/// Multi-head latent attention, see AQ_ATTN_LATENT.
class LatentAttention : public Attention {
 public:
  LatentAttention(const Source& source, const Model& model, int32_t layer, int64_t seq_len,
                  const AttentionDesc& desc, const at::TensorOptions& options)
      : Attention(desc, model.desc().hidden_size),
        desc_(desc),
        rotary_(desc, seq_len, options),
        kv_norm_(source, model, attention_key(layer, AQ_ROLE_ATTN_KV_A_NORM), desc.kv_rank, options,
                 desc.latent_eps) {
    if (desc.q_rank > 0)
      q_norm_.emplace(source, model, attention_key(layer, AQ_ROLE_ATTN_Q_A_NORM), desc.q_rank,
                      options, desc.latent_eps);
  }

  Tensors advance(std::size_t stage, Tensors tensors, const Apply& apply) const override {
    if (stage == 0) return latents(tensors.front(), apply);
    const bool low_rank = desc_.q_rank > 0;
    const int64_t heads = desc_.n_heads, rotated = desc_.rope_dim(), size = desc_.head_dim;
    // without a low rank, q was computed together with the latent of keys and values
    at::Tensor q = low_rank ? apply(AQ_ROLE_ATTN_Q_B, tensors[0]) : tensors[2];
    const at::Tensor kv = apply(AQ_ROLE_ATTN_KV_B, tensors[low_rank ? 1 : 0])
                              .unflatten(2, {heads, size - rotated + desc_.value_dim});
    at::Tensor shared_key = tensors[low_rank ? 2 : 1].unsqueeze(2).contiguous();
    rotary_(shared_key);
    q = q.unflatten(2, {heads, size});
    at::Tensor rotated_q = q.narrow(3, size - rotated, rotated).contiguous();
    rotary_(rotated_q);
    q = at::cat({q.narrow(3, 0, size - rotated), rotated_q}, 3);
    const at::Tensor k =
        at::cat({kv.narrow(3, 0, size - rotated), shared_key.expand({-1, -1, heads, -1})}, 3);
    const at::Tensor v = kv.narrow(3, size - rotated, desc_.value_dim).contiguous();
    return {softmax_attention(q, k, v, desc_.scale, 0)};
  }

 private:
  /// The inputs of q_b and kv_b, the shared key before its rotation, and q if there is no q_b.
  Tensors latents(const at::Tensor& a, const Apply& apply) const {
    at::Tensor q = apply(desc_.q_rank > 0 ? AQ_ROLE_ATTN_Q_A : AQ_ROLE_ATTN_Q, a);
    const at::Tensor kv = apply(AQ_ROLE_ATTN_KV_A, a);
    const at::Tensor latent = kv_norm_(kv.narrow(2, 0, desc_.kv_rank).contiguous());
    const at::Tensor shared_key = kv.narrow(2, desc_.kv_rank, desc_.rope_dim());
    if (desc_.q_rank > 0) return {(*q_norm_)(q), latent, shared_key};
    return {latent, shared_key, q};
  }

  AttentionDesc desc_;
  Rotary rotary_;
  Norm kv_norm_;
  std::optional<Norm> q_norm_;
};

/// Gated delta rule with a causal convolution before and a gated norm behind it, see AQ_ATTN_DELTA.
class DeltaAttention : public Attention {
 public:
  DeltaAttention(const Source& source, const Model& model, int32_t layer, const AttentionDesc& desc,
                 const at::TensorOptions& options)
      : Attention(desc, model.desc().hidden_size),
        desc_(desc),
        keys_(int64_t{desc.n_kv_heads} * desc.head_dim),
        values_(int64_t{desc.n_heads} * desc.value_dim),
        eps_(model.desc().norm_eps),
        dtype_(options.dtype().toScalarType()) {
    const auto read = [&](int32_t role, const std::vector<int64_t>& shape) {
      return read_parameter(source, model, layer, role, shape, options);
    };
    conv_ =
        read(AQ_ROLE_DELTA_CONV, {2 * keys_ + values_, 1, desc.conv_size}).squeeze(1).to(dtype_);
    rate_ = read(AQ_ROLE_DELTA_A_LOG, {desc.n_heads}).exp();
    dt_bias_ = read(AQ_ROLE_DELTA_DT_BIAS, {desc.n_heads});
    norm_ = read(AQ_ROLE_DELTA_NORM, {desc.value_dim}).to(dtype_);
  }

  Tensors advance(std::size_t, Tensors tensors, const Apply& apply) const override {
    const Projected p = project(tensors.front(), apply);
    const at::Tensor mixed = convolved(p.qkv);
    const int64_t heads = desc_.n_heads, key_heads = desc_.n_kv_heads;
    const auto part = [&](int64_t begin, int64_t count, int64_t of) {
      const at::Tensor x =
          mixed.narrow(2, begin, count).unflatten(2, {of, count / of}).to(at::kFloat);
      return of == heads ? x : x.repeat_interleave(heads / of, 2);
    };
    const auto unit = [](const at::Tensor& x) {  // of length 1
      return x * at::rsqrt(x.square().sum(-1, true) + 1e-6);
    };
    const at::Tensor q =
        unit(part(0, keys_, key_heads)) / std::sqrt(static_cast<double>(desc_.head_dim));
    const at::Tensor k = unit(part(keys_, keys_, key_heads));
    const at::Tensor v = part(2 * keys_, values_, heads);
    const at::Tensor beta = p.b.sigmoid().to(at::kFloat);
    const at::Tensor decay = -(rate_ * at::softplus(p.a.to(at::kFloat) + dt_bias_));
    const at::Tensor x = gated_delta_rule(q, k, v, beta, decay).to(dtype_).to(at::kFloat);
    const at::Tensor normed = x * at::rsqrt(x.square().mean(-1, true) + eps_);
    const at::Tensor gate = at::silu(p.z.unflatten(2, {heads, -1}).to(at::kFloat));
    return {((normed.to(dtype_) * norm_) * gate).to(dtype_).flatten(2)};
  }

 private:
  struct Projected {
    at::Tensor qkv, z, b, a;  // [batch, tokens, features]
  };

  Projected project(const at::Tensor& x, const Apply& apply) const {
    if (!desc_.delta_fused)
      return {apply(AQ_ROLE_DELTA_QKV, x), apply(AQ_ROLE_DELTA_Z, x), apply(AQ_ROLE_DELTA_B, x),
              apply(AQ_ROLE_DELTA_A, x)};
    // the features of one key head come after those of another
    const int64_t groups = desc_.n_kv_heads, key = desc_.head_dim, value = values_ / groups;
    const at::Tensor both = apply(AQ_ROLE_DELTA_QKVZ, x).unflatten(2, {groups, -1});
    const at::Tensor gates = apply(AQ_ROLE_DELTA_BA, x).unflatten(2, {groups, -1});
    const int64_t per_group = desc_.n_heads / groups;
    const auto part = [](const at::Tensor& t, int64_t begin, int64_t count) {
      return t.narrow(3, begin, count).flatten(2);
    };
    return {at::cat({part(both, 0, key), part(both, key, key), part(both, 2 * key, value)}, 2),
            part(both, 2 * key + value, value), part(gates, 0, per_group),
            part(gates, per_group, per_group)};
  }

  /// SiLU of the causal convolution of every feature over conv_size tokens.
  at::Tensor convolved(const at::Tensor& x) const {
    const int64_t size = desc_.conv_size, tokens = x.size(1);
    const at::Tensor padded = at::constant_pad_nd(x, {0, 0, size - 1, 0});
    at::Tensor sum;
    for (int64_t i = 0; i < size; i++) {
      const at::Tensor term = padded.narrow(1, i, tokens).to(at::kFloat) * conv_.select(1, i);
      sum = sum.defined() ? sum + term : term;
    }
    return at::silu(sum.to(dtype_));
  }

  AttentionDesc desc_;
  int64_t keys_, values_;  // features of all heads
  double eps_;
  at::ScalarType dtype_;
  at::Tensor conv_;  // [channels, conv_size]
  at::Tensor rate_;  // exp(A_log)
  at::Tensor dt_bias_, norm_;
};

}  // namespace

Attention::Attention(const AttentionDesc& desc, int64_t hidden_size) {
  for (const AttentionLinear& linear : linears_of(desc, hidden_size)) {
    const auto stage = static_cast<std::size_t>(linear.stage);
    const auto input = static_cast<std::size_t>(linear.input);
    if (stages_.size() <= stage) stages_.resize(stage + 1);
    if (stages_[stage].size() <= input) stages_[stage].resize(input + 1);
    stages_[stage][input].push_back(linear.role);
  }
}

std::unique_ptr<Attention> make_attention(const Source& source, const Model& model, int32_t layer,
                                          int64_t seq_len, const at::TensorOptions& options) {
  const AttentionDesc desc = model.attention(layer, seq_len);
  switch (desc.kind) {
    case AQ_ATTN_LATENT:
      return std::make_unique<LatentAttention>(source, model, layer, seq_len, desc, options);
    case AQ_ATTN_DELTA:
      return std::make_unique<DeltaAttention>(source, model, layer, desc, options);
    default:
      return std::make_unique<StandardAttention>(source, model, layer, seq_len, desc, options);
  }
}

}  // namespace aqhost
