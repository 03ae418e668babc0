#pragma once

#include <ATen/ATen.h>

#include "forward/routing.h"
#include "plugin/model.h"

namespace aqhost {

/// The router that `desc` describes (not AQ_ROUTER_CUSTOM), for a batch, on the device of `logits`
/// [N, n_experts] f32; `bias` [n_experts] f32 or undefined. What Model::route gives: the same ids
/// to the bit (with a bias: where no two sums of score and bias are within rounding), weights to
/// 1e-6.
Routing route_batch(const FfnDesc& desc, const at::Tensor& logits, const at::Tensor& bias);

}  // namespace aqhost
