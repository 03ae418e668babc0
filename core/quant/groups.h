#pragma once

#include <ATen/ATen.h>

#include "plugin/format.h"
#include "quant/batch.h"

namespace aqhost {

/// Fits every group of weights [E, out, in], on their device. Returns params
/// [E, out, groups, group_params]. `importance` [E, in] says how much an error in each column
/// counts. If it is undefined, the weights must be on the CPU, and all errors count alike; but in
/// groups of codes of up to 4 bits with one level of scales, which the host rounds and which are
/// not the whole matrix, an error counts by w^2 plus the mean of w^2 over the group.
at::Tensor fit_groups(const Format& format, const at::Tensor& weights, const at::Tensor& importance,
                      const at::Tensor& tensor_params);

/// Computes [E, tensor_params] for weights [E, out, in].
at::Tensor fit_tensors(const Format& format, const at::Tensor& weights,
                       const at::Tensor& importance);

/// Rounds each weight of [E, out, in] to nearest with its group's parameters; fills codes and
/// values.
void round_groups(const Format& format, const at::Tensor& weights, QuantizedBatch& batch);

}  // namespace aqhost
