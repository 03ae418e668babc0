#pragma once

#include <ATen/ATen.h>

#include <boost/dll/shared_library.hpp>

#include "base/error.h"
#include "cuda/kernels.h"

namespace aqhost {

/// The functions of the GPU module (aqhost_cuda.so, beside the program).
struct GpuKernels {
  boost::dll::shared_library library;
  cuda::AqCudaFit* fit;
  cuda::AqCudaRound* round;
  cuda::AqCudaSolve* solve;
  cuda::AqCudaRefit* refit;
  cuda::AqCudaSweep* sweep;
  cuda::AqCudaInvertFactor* invert_factor;
  cuda::AqCudaPermute* permute;
  cuda::AqCudaRmsNorm* rms_norm;
  cuda::AqCudaRotate* rotate;
  cuda::AqCudaSiluTimes* silu_times;
  cuda::AqCudaAddRows* add_rows;
  cuda::AqCudaScaleRows* scale_rows;
};

/// Opens the module at the first call. Throws an Error if it cannot be opened.
const GpuKernels& gpu_kernels();

/// The stream (cudaStream_t) in which LibTorch enqueues the calling thread's work on the GPU of
/// `tensor`.
void* stream_of(const at::Tensor& tensor);

/// Enqueues gpu_kernels().*kernel on the GPU of `where`, after the calling thread's earlier work.
/// Throws an Error if that fails.
template <typename Kernel, typename... Args>
void enqueue(Kernel GpuKernels::*kernel, const at::Tensor& where, const Args&... args) {
  const char* error =
      (gpu_kernels().*kernel)(args..., static_cast<int>(where.get_device()), stream_of(where));
  if (error != nullptr) fail("a GPU kernel failed: {}", error);
}

}  // namespace aqhost
