#pragma once

#include <ATen/ATen.h>

#include <cstdint>

// Steps of a layer that pass over memory once, where LibTorch passes over it once per operation.
// Tensors are float32 or bfloat16, on one device, and contiguous unless noted otherwise. Sums and
// products are float32, rounded at the points where the model would store them. On a CPU, all
// threads are used; results do not depend on their number.

namespace aqhost {

/// Whether these functions can be used on x: it has one of these types and needs no gradient.
bool can_fuse(const at::Tensor& x);

/// x [..., size] / sqrt(mean(x^2) + eps), rounded to the type of `weight` [size], times `weight`;
/// the result has that type.
at::Tensor fused_rms_norm(const at::Tensor& x, const at::Tensor& weight, float eps);

/// Applies the rotary embedding in place to x [batch, tokens, heads, size]. `cos` and `sin` are [at
/// least tokens, half], of the type of x, with half <= size / 2. A pair is (i, half + i), or (2 i,
/// 2 i + 1) if `interleaved`.
void fused_rotate(at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved);

/// gate = silu(gate) up; both have the same shape and type. silu is rounded before it is
/// multiplied.
void fused_silu_times(at::Tensor& gate, const at::Tensor& up);

/// sums[rows[i]] += weights[i] y[i], with sums [N, size] float32, rows [n] int64 (all different),
/// weights [n] float32 and y [n, size].
void fused_add_rows(at::Tensor& sums, const at::Tensor& rows, const at::Tensor& weights,
                    const at::Tensor& y);

}  // namespace aqhost
