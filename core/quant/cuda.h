#pragma once

#include "plugin/format.h"
#include "quant/factor.h"
#include "quant/gptq.h"

namespace aqhost {

/// Whether the GPU module can round to this format: it must be described, with at most 8 bits and
/// 64 search factors, and groups within a row. Other formats are solved on the CPU.
bool cuda_rounds(const FormatDesc& desc);

// These equal the functions of the same name in quant/solver.h, but take tensors on a GPU. They
// throw an Error if the GPU module (aqhost_cuda.so, beside the program) cannot be opened.
at::Tensor fit_groups_cuda(const FormatDesc& desc, const at::Tensor& weights,
                           const at::Tensor& importance, const at::Tensor& tensor_params);
void round_groups_cuda(const FormatDesc& desc, const at::Tensor& weights, QuantizedBatch& batch);
void solve_described_cuda(const FormatDesc& desc, const at::Tensor& weights, const Factors& factors,
                          const at::Tensor& importance, const GptqOptions& options,
                          QuantizedBatch& batch);
/// Does not change batch.loss.
void sweep_described_cuda(const FormatDesc& desc, const at::Tensor& weights,
                          const at::Tensor& hessians, int sweeps, QuantizedBatch& batch);

}  // namespace aqhost
