#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

namespace aqhost {

/// The factor s = c^p of each token in a Hessian, for routing weights c [n] and the power p. The
/// result is undefined, which stands for 1, if p is 0 or the weights are undefined.
inline at::Tensor to_power(const at::Tensor& weights, double power) {
  if (!weights.defined() || power == 0) return {};
  return power == 1 ? weights : weights.pow(power);
}

/// Those rows of [begin, begin + count) that `t` has; undefined if it has none of them.
inline at::Tensor rows_or_none(const at::Tensor& t, int64_t begin, int64_t count) {
  if (!t.defined() || begin >= t.size(0)) return {};
  return t.narrow(0, begin, std::min(count, t.size(0) - begin));
}

}  // namespace aqhost
