#pragma once

#include <ATen/ATen.h>

#include "forward/routing.h"
#include "plugin/model.h"

namespace aqhost {

/// Runs the router that `desc` describes (not AQ_ROUTER_CUSTOM) on a batch, on the device of
/// `logits` [N, n_experts] f32. `bias` is [n_experts] f32 or undefined. The result equals that of
/// Model::route: exactly the same ids (with a bias, unless two sums of score and bias are within
/// rounding of each other), and weights to within 1e-6.
Routing route_batch(const FfnDesc& desc, const at::Tensor& logits, const at::Tensor& bias);

}  // namespace aqhost
