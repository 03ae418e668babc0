#pragma once

#include <ATen/ATen.h>

namespace aqhost {

/// ||a - b|| / ||b||, computed in float64.
inline double distance(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  return ((x - y).norm() / y.norm()).item<double>();
}

}  // namespace aqhost
