#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace aqhost {

/// Whether causal_attention() can be used for q, k and v of this kind: bfloat16 without gradients
/// on a CPU with AVX512-BF16, with an even head size.
bool has_causal_attention(const at::Tensor& q);

/// Computes softmax(scale q k^T) v as [batch, tokens, heads x size] from q [batch, tokens, heads,
/// size], k and v [batch, tokens, kv_heads, size], all contiguous. Token i sees tokens (i - window,
/// i]; with window 0 it sees all tokens up to itself. Scores and sums are float32, and the softmax
/// is rounded to bfloat16 before it is multiplied by v. LibTorch's scaled_dot_product_attention
/// does the same, but takes twice as long where MKL has no bfloat16 kernels of its own. Uses all
/// threads; the result does not depend on their number.
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double scale, int64_t window);

}  // namespace aqhost
