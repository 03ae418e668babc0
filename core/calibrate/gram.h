#pragma once

#include <ATen/ATen.h>

namespace aqhost {

// Sums over tokens of products of their bfloat16 features, added in float32. They use all threads,
// and the result does not depend on their number. Without has_bfloat16_products() a call is an
// error.
//   x, original  [n, d] bfloat16
//   weights      [n] float32, s of each token, >= 0; undefined for 1
//   sum          [d, d] float32

/// sum += s x x^T, with sqrt(s) x rounded to bfloat16. Computes one half and mirrors it.
void add_gram(at::Tensor& sum, const at::Tensor& x, const at::Tensor& weights);

/// sum += scale s (original - x) x^T, with s (original - x) rounded to bfloat16.
void add_shift_products(at::Tensor& sum, const at::Tensor& x, const at::Tensor& weights,
                        const at::Tensor& original, double scale);

}  // namespace aqhost
