#pragma once

#include <ATen/ATen.h>

#include "plugin/format.h"
#include "quant/batch.h"

namespace aqhost {

/// Fits every group of weights [E, out, in]. `importance` is [E, in] or undefined. Returns params
/// [E, out, groups, group_params].
at::Tensor fit_groups(const Format& format, const at::Tensor& weights, const at::Tensor& importance,
                      const at::Tensor& tensor_params);

/// Computes [E, tensor_params] for weights [E, out, in].
at::Tensor fit_tensors(const Format& format, const at::Tensor& weights,
                       const at::Tensor& importance);

/// Rounds each weight of [E, out, in] to nearest with its group's parameters; fills codes and
/// values.
void round_groups(const Format& format, const at::Tensor& weights, QuantizedBatch& batch);

}  // namespace aqhost
