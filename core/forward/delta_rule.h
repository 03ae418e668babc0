#pragma once

#include <ATen/ATen.h>

namespace aqhost {

/// The gated delta rule (arXiv:2412.06464): for each head, with a state S [size, value size] that
/// begins as 0,
///   S = exp(decay) S,  S = S + k (beta (v - S^T k))^T,  output = S^T q
/// for one token after another. q and k are [batch, tokens, heads, size], v is [batch, tokens,
/// heads, value size], beta and decay (at most 0) are [batch, tokens, heads]; all are float32. The
/// result is [batch, tokens, heads, value size] f32. Tokens are processed in chunks of 64, each by
/// matrix products. Gradients flow through it. Thread-safe.
at::Tensor gated_delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& beta, const at::Tensor& decay);

}  // namespace aqhost
