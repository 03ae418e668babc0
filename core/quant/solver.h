#pragma once

#include <ATen/ATen.h>

#include "plugin/format.h"
#include "quant/factor.h"
#include "quant/gptq.h"

namespace aqhost {

/// Fits every group of weights [E, out, in]; importance [E, in] or undefined. Returns params
/// [E, out, groups, group_params].
at::Tensor fit_groups(const Format& format, const at::Tensor& weights, const at::Tensor& importance,
                      const at::Tensor& tensor_params);

/// [E, tensor_params] of weights [E, out, in].
at::Tensor fit_tensors(const Format& format, const at::Tensor& weights,
                       const at::Tensor& importance);

/// Codes and values of weights [E, out, in] by rounding each to its group's nearest.
void round_groups(const Format& format, const at::Tensor& weights, QuantizedBatch& batch);

/// GPTQ for formats the host rounds itself: all matrices of the batch at once, in blocks of
/// columns. Fills codes, values and loss (and params, where they are fitted on the way).
void solve_described(const Format& format, const at::Tensor& weights, const Factors& factors,
                     const at::Tensor& importance, const GptqOptions& options,
                     QuantizedBatch& batch);

/// Whether sweeps change the scales of a format: not where only powers of 2 are stored, and not
/// where one scale serves all rows of a matrix, as a sweep works on each row by itself.
inline bool refits(const FormatDesc& desc) {
  return desc.scale_kind != AQ_SCALE_E8M0 && desc.group_size != 0;
}

/// Passes over a solved batch, group by group in the order of the columns, under H [E, in, in]: the
/// group's scale becomes the stored one nearest to the least-squares fit of its codes (where
/// refits() says so), then each code in turn the one that lowers 1/2 d H d^T most while all others
/// stay. No change raises that loss. Updates codes, values, params and loss.
void sweep_described(const Format& format, const at::Tensor& weights, const at::Tensor& hessians,
                     int sweeps, QuantizedBatch& batch);

/// GPTQ through the format's callbacks, one matrix after another, vector_dim columns at a time.
void solve_by_callbacks(const Format& format, const at::Tensor& weights, const Factors& factors,
                        const at::Tensor& importance, bool static_groups, QuantizedBatch& batch);

}  // namespace aqhost
