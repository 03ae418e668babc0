#pragma once

#include <cstdint>

#include "cuda/grid.h"

// The GPU module's interface: plain pointers into device memory and a cudaStream_t, so that it
// links neither LibTorch nor anything of a GPU's driver. Everything is float32, row-major, and
// enqueued on `stream` of the GPU `device`, where all memory is; each function makes that the
// calling thread's current GPU, and returns nullptr or what went wrong. Matrices of one shape are a
// batch of `count`.
namespace aqhost::cuda {

/// Fits groups of `width` columns (the last may be narrower) of weights [count, rows, cols].
struct FitArgs {
  const float* weights;
  int64_t row_stride;       // of weights, in floats; matrices lie behind one another
  const float* importance;  // [count][importance_stride] or nullptr
  int64_t importance_stride;
  const float* globals;  // [count] or nullptr
  float* params;         // [count * rows][param_stride], a group's after another's
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

/// One block of GPTQ: n <= 128 columns one after another, each one's error taken to those behind it
/// in the block. Pointers are to the block's first column.
struct SolveArgs {
  const float* weights;  // [count, rows][row_stride], in solving order
  const float* upper;    // [count, cols, cols] from the block's corner on
  const int64_t* order;  // [count, cols]: original columns
  const float* params;   // [count, rows, groups, group_params]
  const float* globals;  // [count] or nullptr
  uint8_t* codes;        // [count, rows][row_stride]
  float* values;         // [count, rows][row_stride]
  float* errors;         // [count, rows][error_stride]
  double* loss;          // [count, rows], added to
  int64_t row_stride, error_stride;
  int64_t count, rows, cols, width, groups, n;
};

/// Least-squares scales for the codes of one group of n columns, where they lower the loss.
/// Pointers are to the group's first column, parameters to its first matrix's first row's.
struct RefitArgs {
  const uint8_t* codes;   // [count, rows][row_stride]
  float* values;          // [count, rows][row_stride]
  const float* gradient;  // [count, rows][row_stride]: (values - weights) H
  const float* products;  // [count, rows, n]: values H, of the group's values and columns alone
  float* params;          // [count, rows][param_stride]
  const float* globals;   // [count] or nullptr
  float* change;          // [count, rows, n]: of values
  int64_t row_stride, param_stride;
  int64_t count, rows, n;
};

/// Each of n <= 128 columns in turn to the code that lowers the loss most while all others stay.
/// Pointers are to the first of them.
struct SweepArgs {
  const float* hessians;  // [count, cols, cols] from the block's corner on
  const float* gradient;  // [count, rows][row_stride]
  const float* params;    // [count, rows, groups, group_params]
  const float* globals;   // [count] or nullptr
  uint8_t* codes;         // [count, rows][row_stride]
  float* values;          // [count, rows][row_stride]
  float* change;          // [count, rows, n]: of values
  int64_t row_stride;
  int64_t count, rows, cols, width, groups;
  int64_t begin, n;  // the first column
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
