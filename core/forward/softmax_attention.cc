#include "forward/softmax_attention.h"

#include <algorithm>

#include "forward/causal_attention.h"

namespace aqhost {
namespace {

/// True if token i (row) sees token j, that is if j is in (i - window, i].
at::Tensor window_mask(int64_t tokens, int64_t window, at::Device device) {
  const at::Tensor all = at::ones({tokens, tokens}, at::TensorOptions(device).dtype(at::kBool));
  return all.tril().logical_and_(all.triu(1 - window));
}

/// x [batch, tokens, heads, size] with zeros behind, up to `size`.
at::Tensor widened(const at::Tensor& x, int64_t size) {
  return x.size(3) == size ? x : at::constant_pad_nd(x, {0, size - x.size(3)});
}

at::Tensor each_head(const at::Tensor& x, int64_t heads) {
  return x.size(2) == heads ? x : x.repeat_interleave(heads / x.size(2), 2);
}

/// Attention with a sink. The sink is a token before all others: each query has a 1 behind its
/// features, and the sink's key has the score there; its value is 0. In bfloat16, the score is the
/// sum of two numbers.
at::Tensor with_sinks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                      int64_t window, const at::Tensor& sinks) {
  constexpr int64_t kMore = 8;  // features, so that the size stays a multiple of 8
  const int64_t tokens = q.size(1), heads = q.size(2), size = q.size(3);
  const auto before = [](const at::Tensor& x) {  // with a token of zeros in front
    return at::constant_pad_nd(x, {0, kMore, 0, 0, 1, 0});
  };
  at::Tensor queries = before(q), keys = before(each_head(k, heads));
  const at::Tensor values = before(each_head(v, heads));
  queries.narrow(3, size, 2).fill_(1);
  const at::Tensor score = sinks / scale, high = score.to(q.scalar_type());
  keys.select(1, 0).select(2, size).copy_(high);
  keys.select(1, 0).select(2, size + 1).copy_(score - high);
  std::optional<at::Tensor> mask;
  if (window > 0 && window < tokens) {
    mask =
        at::ones({tokens + 1, tokens + 1}, at::TensorOptions(q.device()).dtype(at::kBool)).tril();
    mask->narrow(0, 1, tokens).narrow(1, 1, tokens).copy_(window_mask(tokens, window, q.device()));
  }
  const at::Tensor context =
      at::scaled_dot_product_attention(queries.transpose(1, 2), keys.transpose(1, 2),
                                       values.transpose(1, 2), mask, 0.0, !mask.has_value(), scale);
  return context.transpose(1, 2).narrow(1, 1, tokens).narrow(3, 0, v.size(3)).flatten(2);
}

}  // namespace

at::Tensor softmax_attention(at::Tensor q, at::Tensor k, at::Tensor v, double scale, int64_t window,
                             const at::Tensor& sinks) {
  const int64_t tokens = q.size(1), heads = q.size(2), value_size = v.size(3);
  // the fast kernels need keys and values of one size
  const int64_t size = std::max(q.size(3), value_size);
  q = widened(q, size);
  k = widened(k, size);
  v = widened(v, size);
  at::Tensor context;
  if (sinks.defined()) {
    context = with_sinks(q, k, v, scale, window, sinks);
  } else if (has_causal_attention(q)) {
    context = causal_attention(q, k, v, scale, window);
  } else {
    k = each_head(k, heads);
    v = each_head(v, heads);
    const bool windowed = window > 0 && window < tokens;
    const at::Tensor mask = windowed ? window_mask(tokens, window, q.device()) : at::Tensor();
    context = at::scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        mask.defined() ? std::optional(mask) : std::nullopt, 0.0, !windowed, scale);
    context = context.transpose(1, 2).flatten(2);
  }
  if (size == value_size) return context;
  return context.unflatten(2, {heads, size}).narrow(3, 0, value_size).flatten(2);
}

}  // namespace aqhost
