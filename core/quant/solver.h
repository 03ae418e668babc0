#pragma once

#include <ATen/ATen.h>

#include "plugin/format.h"
#include "quant/factor.h"
#include "quant/gptq.h"

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

/// GPTQ for formats that the host rounds itself. All matrices of the batch are solved at once, in
/// blocks of columns. Fills codes, values and loss (and params, if they are fitted during the
/// solve).
void solve_described(const Format& format, const at::Tensor& weights, const Factors& factors,
                     const at::Tensor& importance, const GptqOptions& options,
                     QuantizedBatch& batch);

/// Whether sweeps change the scales of a format. They do not if only powers of 2 are stored, or if
/// one scale serves all rows of a matrix, because a sweep works on each row by itself.
inline bool refits(const FormatDesc& desc) {
  return desc.scale_kind != AQ_SCALE_E8M0 && desc.group_size != 0;
}

/// Makes passes over a solved batch under H [E, in, in], group by group in the order of the
/// columns. First the scale of the group becomes the storable scale nearest to the least-squares
/// fit of its codes (if refits() is true). Then each code in turn becomes the one that lowers 1/2 d
/// H d^T most while all others stay. No change raises that loss. Updates codes, values, params and
/// loss.
void sweep_described(const Format& format, const at::Tensor& weights, const at::Tensor& hessians,
                     int sweeps, QuantizedBatch& batch);

/// GPTQ by the format's callbacks: one matrix after another, vector_dim columns at a time.
void solve_by_callbacks(const Format& format, const at::Tensor& weights, const Factors& factors,
                        const at::Tensor& importance, bool static_groups, QuantizedBatch& batch);

}  // namespace aqhost
