#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace aqhost {

/// Whether causal_attention() can be used on such a q, k and v: bfloat16 without gradients on a CPU
/// with AVX512-BF16, heads of even size.
bool has_causal_attention(const at::Tensor& q);

/// softmax(scale q k^T) v of q [batch, tokens, heads, size], k and v [batch, tokens, kv_heads,
/// size], all contiguous, as [batch, tokens, heads x size]. Token i sees tokens (i - window, i];
/// window 0: all up to itself. Scores and sums are float32, the softmax is rounded to bfloat16
/// before v is multiplied, as LibTorch's scaled_dot_product_attention does it, which takes twice as
/// long where MKL has no bfloat16 of its own. On all threads, the same result for any
/// number of them.
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double scale, int64_t window);

}  // namespace aqhost
