#include "forward/attention.h"

#include "base/error.h"
#include "forward/causal_attention.h"
#include "forward/fused.h"

namespace aqhost {
namespace {

/// True if token i (row) sees token j, that is if j is in (i - window, i].
at::Tensor window_mask(int64_t tokens, int64_t window, at::Device device) {
  const at::Tensor all = at::ones({tokens, tokens}, at::TensorOptions(device).dtype(at::kBool));
  return all.tril().logical_and_(all.triu(1 - window));
}

}  // namespace

Attention::Attention(const Source& source, const Model& model, int32_t layer, int64_t seq_len,
                     const at::TensorOptions& options)
    : desc_(model.attention(layer, seq_len)), seq_len_(seq_len) {
  if (desc_.qk_norm != AQ_QK_NORM_NONE) {
    const bool full = desc_.qk_norm == AQ_QK_NORM_FULL;
    const int64_t q = full ? int64_t{desc_.n_heads} * desc_.head_dim : desc_.head_dim;
    const int64_t k = full ? int64_t{desc_.n_kv_heads} * desc_.head_dim : desc_.head_dim;
    const auto key = [layer](int32_t role) {
      return aq_tensor_key{layer, role, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
    };
    q_norm_.emplace(source, model, key(AQ_ROLE_ATTN_Q_NORM), q, options);
    k_norm_.emplace(source, model, key(AQ_ROLE_ATTN_K_NORM), k, options);
  }
  if (desc_.rope_inv_freq.empty()) return;
  const at::Tensor positions = at::arange(seq_len, at::kFloat);
  const at::Tensor angles = at::outer(positions, at::tensor(desc_.rope_inv_freq));
  cos_ = angles.cos().mul_(desc_.rope_scale).to(options);
  sin_ = angles.sin().mul_(desc_.rope_scale).to(options);
}

/// Rotates x [batch, tokens, heads, size] in place.
void Attention::rotate(at::Tensor& x) const {
  const int64_t half = cos_.size(1), tokens = x.size(1);
  const bool pairs = desc_.rope_interleaved;
  if (can_fuse(x)) return fused_rotate(x, cos_, sin_, pairs);
  const at::Tensor cos = cos_.narrow(0, 0, tokens).unsqueeze(1);
  const at::Tensor sin = sin_.narrow(0, 0, tokens).unsqueeze(1);
  const at::Tensor part = x.narrow(3, 0, 2 * half);
  at::Tensor a = pairs ? part.slice(3, 0, 2 * half, 2) : part.narrow(3, 0, half);
  at::Tensor b = pairs ? part.slice(3, 1, 2 * half, 2) : part.narrow(3, half, half);
  const at::Tensor rotated = a * cos - b * sin;
  b.copy_(b * cos + a * sin);
  a.copy_(rotated);
}

/// Turns [batch, tokens, count x size] into [batch, tokens, count, size].
at::Tensor Attention::heads(const at::Tensor& x, int64_t count, const std::optional<Norm>& norm,
                            bool rotated) const {
  at::Tensor y = x;
  if (norm && desc_.qk_norm == AQ_QK_NORM_FULL) y = (*norm)(y);
  y = y.unflatten(2, {count, desc_.head_dim});
  if (norm && desc_.qk_norm == AQ_QK_NORM_HEAD) y = (*norm)(y);
  if (desc_.clip_qkv > 0) y = y.clamp(-desc_.clip_qkv, desc_.clip_qkv);
  y = y.contiguous();
  if (rotated && cos_.defined()) rotate(y);
  return y;
}

at::Tensor Attention::operator()(at::Tensor q, at::Tensor k, at::Tensor v) const {
  const int64_t tokens = q.size(1);
  if (tokens > seq_len_)
    fail("a sequence of {} tokens, the layer was made for {}", tokens, seq_len_);
  q = heads(q, desc_.n_heads, q_norm_, true);
  k = heads(k, desc_.n_kv_heads, k_norm_, true);
  v = heads(v, desc_.n_kv_heads, std::nullopt, false);
  if (has_causal_attention(q)) return causal_attention(q, k, v, desc_.scale, desc_.sliding_window);
  const int64_t shared = desc_.n_heads / desc_.n_kv_heads;
  if (shared > 1) {
    k = k.repeat_interleave(shared, 2);
    v = v.repeat_interleave(shared, 2);
  }
  const bool windowed = desc_.sliding_window > 0 && desc_.sliding_window < tokens;
  const at::Tensor mask =
      windowed ? window_mask(tokens, desc_.sliding_window, q.device()) : at::Tensor();
  const at::Tensor context = at::scaled_dot_product_attention(
      q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
      mask.defined() ? std::optional(mask) : std::nullopt, 0.0, !windowed, desc_.scale);
  return context.transpose(1, 2).flatten(2);
}

}  // namespace aqhost
