#pragma once

#include <ATen/ATen.h>

#include <functional>

namespace aqhost {

/// y = x W^T + b with a weight that calibration replaces. The weight may be a view into a tensor
/// with the weights of all experts.
struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined

  std::function<at::Tensor(const at::Tensor&)> round_input{};  // applied to x, unless empty
  std::function<void(const at::Tensor&)> see_output{};         // called with y, unless empty

  at::Tensor operator()(const at::Tensor& x) const {
    const at::Tensor y = at::linear(round_input ? round_input(x) : x, weight, bias);
    if (see_output) see_output(y);
    return y;
  }
};

}  // namespace aqhost
