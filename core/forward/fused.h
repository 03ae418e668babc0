#pragma once

#include <ATen/ATen.h>

#include <cstdint>

// Steps of a layer on a CPU in one pass over memory, where LibTorch takes one for each operation.
// Tensors are float32 or bfloat16, contiguous unless it says otherwise; sums and products are
// float32, rounded where the model would store them. On all threads, the same result for any number
// of them.

namespace aqhost {

/// Whether they can be used on x: on a CPU, of these types, and it needs no gradient.
bool can_fuse(const at::Tensor& x);

/// x [..., size] / sqrt(mean(x^2) + eps), rounded to the type of `weight` [size], times it; in that
/// type.
at::Tensor fused_rms_norm(const at::Tensor& x, const at::Tensor& weight, float eps);

/// Rotary embedding in place: x [batch, tokens, heads, size], cos and sin [at least tokens, half]
/// of its type; half <= size / 2. A pair is (i, half + i), or (2 i, 2 i + 1) if `interleaved`.
void fused_rotate(at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved);

/// gate = silu(gate) up, both of one shape and type; silu is rounded before it is multiplied.
void fused_silu_times(at::Tensor& gate, const at::Tensor& up);

/// sums[rows[i]] += weights[i] y[i]. sums [N, size] float32, rows [n] int64 (no two equal), weights
/// [n] float32, y [n, size].
void fused_add_rows(at::Tensor& sums, const at::Tensor& rows, const at::Tensor& weights,
                    const at::Tensor& y);

}  // namespace aqhost
