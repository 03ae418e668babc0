#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace aqhost {

/// Computes softmax(scale q k^T) v over the tokens that each token sees, as [batch, tokens, heads x
/// value size], from q [batch, tokens, heads, size], k [batch, tokens, kv_heads, size] and v
/// [batch, tokens, kv_heads, value size], all contiguous. Token i sees tokens (i - window, i]; with
/// window 0 it sees all tokens up to itself. `sinks` [heads] f32 are scores that each head adds to
/// its softmax and whose value is 0; undefined: there are none. Scores and sums are float32.
/// Thread-safe.
at::Tensor softmax_attention(at::Tensor q, at::Tensor k, at::Tensor v, double scale, int64_t window,
                             const at::Tensor& sinks = {});

}  // namespace aqhost
