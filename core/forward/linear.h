#pragma once

#include <ATen/ATen.h>

#include "plugin/model.h"

namespace aqhost {

/// y = x W^T + b with a weight that calibration replaces. The weight may be a view into a tensor of
/// all experts.
struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined

  at::Tensor operator()(const at::Tensor& x) const { return at::linear(x, weight, bias); }
};

}  // namespace aqhost
