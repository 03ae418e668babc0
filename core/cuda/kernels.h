#pragma once

#include <cstdint>

#include "cuda/grid.h"

// The interface of the GPU module. It has only plain pointers to device memory and a cudaStream_t,
// so that it links neither LibTorch nor the GPU's driver. Everything is float32 and row-major, and
// is enqueued on `stream` of the GPU `device`, where all memory must be. Each function makes
// `device` the current GPU of the calling thread, and returns nullptr or an error message. `count`
// matrices of one shape form a batch.
namespace aqhost::cuda {

/// Fits groups of `width` columns (the last may be narrower) of weights [count, rows, cols].
struct FitArgs {
  const float* weights;
  int64_t row_stride;       // of weights, in floats; matrices lie behind one another
  const float* importance;  // [count][importance_stride] or nullptr
  int64_t importance_stride;
  const float* globals;  // [count] or nullptr
  float* params;         // [count * rows][param_stride], group after group
  int64_t param_stride;
  int64_t count, rows, cols, width;
};

/// Rounds weights [count, rows, cols] to codes and values.
struct RoundArgs {
  const float* weights;
  const float* params;   // [count, rows, groups, group_params]
  const float* globals;  // [count] or nullptr
  uint8_t* codes;        // [count, rows, cols]
  float* values;         // [count, rows, cols]
  int64_t count, rows, cols, width, groups;
};

/// One block of GPTQ: solves n <= 128 columns one after another, and subtracts the error of each
/// from the later columns of the block. Pointers point at the first column of the block.
struct SolveArgs {
  const float* weights;  // [count, rows][row_stride], in solving order
  const float* upper;    // [count, cols, cols], from the block's corner on
  const int64_t* order;  // [count, cols]: original columns
  const float* params;   // [count, rows, groups, group_params]
  const float* globals;  // [count] or nullptr
  uint8_t* codes;        // [count, rows][row_stride]
  float* values;         // [count, rows][row_stride]
  float* errors;         // [count, rows][error_stride]
  double* loss;          // [count, rows], is added to
  int64_t row_stride, error_stride;
  int64_t count, rows, cols, width, groups, n;
};

/// Replaces the scales of one group of n columns by the least-squares scales for its codes, where
/// this lowers the loss. Pointers point at the first column of the group; `params` points at this
/// group's parameters in the first row of the first matrix.
struct RefitArgs {
  const uint8_t* codes;   // [count, rows][row_stride]
  float* values;          // [count, rows][row_stride]
  const float* gradient;  // [count, rows][row_stride]: (values - weights) H
  const float* products;  // [count, rows, n]: values H, restricted to the group
  float* params;          // [count, rows][param_stride]
  const float* globals;   // [count] or nullptr
  float* change;          // [count, rows, n]: change of values
  int64_t row_stride, param_stride;
  int64_t count, rows, n;
};

/// Gives each of n <= 128 columns in turn the code that lowers the loss most while all others stay.
/// Pointers point at the first of these columns.
struct SweepArgs {
  const float* hessians;  // [count, cols, cols], from the block's corner on
  const float* gradient;  // [count, rows][row_stride]
  const float* params;    // [count, rows, groups, group_params]
  const float* globals;   // [count] or nullptr
  uint8_t* codes;         // [count, rows][row_stride]
  float* values;          // [count, rows][row_stride]
  float* change;          // [count, rows, n]: change of values
  int64_t row_stride;
  int64_t count, rows, cols, width, groups;
  int64_t begin, n;  // begin: the first column
};

extern "C" {
using AqCudaFit = const char*(const Grid&, const FitArgs&, int device, void* stream);
using AqCudaRound = const char*(const Grid&, const RoundArgs&, int device, void* stream);
using AqCudaSolve = const char*(const Grid&, const SolveArgs&, int device, void* stream);
using AqCudaRefit = const char*(const Grid&, const RefitArgs&, int device, void* stream);
using AqCudaSweep = const char*(const Grid&, const SweepArgs&, int device, void* stream);
AqCudaFit aq_cuda_fit;
AqCudaRound aq_cuda_round;
AqCudaSolve aq_cuda_solve;
AqCudaRefit aq_cuda_refit;
AqCudaSweep aq_cuda_sweep;
}

}  // namespace aqhost::cuda
