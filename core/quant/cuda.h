#pragma once

#include "plugin/format.h"
#include "quant/factor.h"
#include "quant/gptq.h"

namespace aqhost {

/// Whether the GPU module does this format's arithmetic: described, at most 8 bits and 64 search
/// factors, groups within a row. Others are solved on the CPU.
bool cuda_rounds(const FormatDesc& desc);

// As the functions of the same name in quant/solver.h, for tensors on a GPU. Error if the GPU
// module (aqhost_cuda.so, beside the program) cannot be opened.
at::Tensor fit_groups_cuda(const FormatDesc& desc, const at::Tensor& weights,
                           const at::Tensor& importance, const at::Tensor& tensor_params);
void round_groups_cuda(const FormatDesc& desc, const at::Tensor& weights, QuantizedBatch& batch);
void solve_described_cuda(const FormatDesc& desc, const at::Tensor& weights, const Factors& factors,
                          const at::Tensor& importance, const GptqOptions& options,
                          QuantizedBatch& batch);
/// Leaves batch.loss as it was.
void sweep_described_cuda(const FormatDesc& desc, const at::Tensor& weights,
                          const at::Tensor& hessians, int sweeps, QuantizedBatch& batch);

}  // namespace aqhost
