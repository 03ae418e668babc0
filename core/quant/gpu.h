#pragma once

#include "cuda/grid.h"
#include "plugin/format.h"
#include "quant/batch.h"
#include "quant/factor.h"

namespace aqhost {

/// Whether the GPU module can round to this format: it must be described, with at most 8 bits and
/// 64 search factors, and groups within a row. Other formats are fitted, rounded and swept on the
/// CPU; their factors and losses are computed on the GPU.
bool gpu_rounds(const FormatDesc& desc);

/// A format that the GPU module can round, in the form that its kernels take.
cuda::Grid kernel_grid(const FormatDesc& desc);

// These equal the functions of the same names in groups.h, solve.h and sweep.h, but take tensors on
// a GPU. They throw an Error if the GPU module (aqhost_cuda.so, beside the program) cannot be
// opened.
at::Tensor fit_groups_on_gpu(const FormatDesc& desc, const at::Tensor& weights,
                             const at::Tensor& importance, const at::Tensor& tensor_params);
void round_groups_on_gpu(const FormatDesc& desc, const at::Tensor& weights, QuantizedBatch& batch);
void solve_described_on_gpu(const FormatDesc& desc, const at::Tensor& weights,
                            const Factors& factors, const at::Tensor& importance, bool actorder,
                            QuantizedBatch& batch);
/// out[e][r][c] = in[e][r][order[e][c]], for in [E, rows, n] (f32 or u8) and order [E, n] (i64).
at::Tensor permute_columns_on_gpu(const at::Tensor& in, const at::Tensor& order);
/// The upper triangular U [E, n, n] with H^-1 = U^T U for each of `hessians` [E, n, n], permuted by
/// `order` [E, n] as in Factors; both are f32, and the factors are computed in float64. U has
/// values that are not finite if H is not positive definite.
at::Tensor inverse_factors_on_gpu(const at::Tensor& hessians, const at::Tensor& order);
/// Does not change batch.loss.
void sweep_described_on_gpu(const FormatDesc& desc, const at::Tensor& weights,
                            const at::Tensor& hessians, int sweeps, QuantizedBatch& batch);

}  // namespace aqhost
