#pragma once

#include <cstdint>

#include "cuda/grid.h"

// The interface of the GPU module. It has only plain pointers to device memory and a cudaStream_t,
// so that it links neither LibTorch nor the GPU's driver. Everything is row-major, and float32
// where no other type is named. It is enqueued on `stream` of the GPU `device`, where all memory
// must be. Each function makes `device` the current GPU of the calling thread, and returns nullptr
// or an error message. `count` matrices of one shape form a batch.
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

/// A block of n <= 128 columns that are rounded one after another. Pointers point at the block's
/// first column, and matrices [cols, cols] at its corner.
struct BlockArgs {
  const float* params;   // [count, rows, groups, group_params], of all columns
  const float* globals;  // [count] or nullptr
  uint8_t* codes;        // [count, rows][row_stride]
  float* values;         // [count, rows][row_stride]
  int64_t row_stride;
  int64_t count, rows, cols, width, groups, n;
};

/// One block of GPTQ: solves its columns, and subtracts the error of each from the later columns of
/// the block.
struct SolveArgs : BlockArgs {
  const float* weights;  // [count, rows][row_stride], in solving order
  const float* upper;    // [count, cols, cols]
  const int64_t* order;  // [count, cols]: original columns
  float* errors;         // [count, rows][error_stride]
  double* loss;          // [count, rows], is added to
  int64_t error_stride;
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

/// Gives each column of a block in turn the code that lowers the loss most while all others stay.
struct SweepArgs : BlockArgs {
  const float* hessians;  // [count, cols, cols]
  const float* gradient;  // [count, rows][row_stride]
  float* change;          // [count, rows, n]: change of values
  int64_t begin;          // the first column
};

/// Replaces symmetric positive definite float64 matrices [n, n], n <= 128, by the inverses of their
/// Cholesky factors: L^-1 with A = L L^T, whose upper triangle is 0. Only the lower triangle is
/// read. If a matrix is not positive definite, the result has infinities or NaN.
struct InvertFactorArgs {
  double* matrices;
  int64_t matrix_stride, row_stride;  // in numbers
  int64_t count, n;
};

/// The types of elements that aq_cuda_permute converts.
enum class Permuted { kFloatToFloat, kByteToByte, kFloatToDouble, kDoubleToFloat };

/// out[e][r][c] = in[e][row_order[e][r]][column_order[e][c]], for matrices [count, rows, cols].
struct PermuteArgs {
  const void* in;
  void* out;
  const int64_t* row_order;     // [count, rows], or nullptr: rows stay where they are
  const int64_t* column_order;  // [count, cols]
  Permuted types;
  int64_t count, rows, cols;
};

/// The types of tensors that steps of a layer read and write.
enum class Float { kFloat32, kBFloat16 };

/// What fused_rms_norm() of forward/fused.h does, for rows of `size` numbers.
struct RmsNormArgs {
  const void* x;       // [rows, size] of x_type
  const void* weight;  // [size] of out_type
  void* out;           // [rows, size] of out_type
  Float x_type, out_type;
  int64_t rows, size;
  float eps;
};

/// What fused_rotate() of forward/fused.h does.
struct RotateArgs {
  void* x;          // [batch, tokens, heads, size] of type
  const void* cos;  // [at least tokens, half] of type
  const void* sin;
  Float type;
  int64_t batch, tokens, heads, size, half;
  bool interleaved;
};

/// What fused_silu_times() of forward/fused.h does.
struct SiluTimesArgs {
  void* gate;      // [rows, size] of type
  const void* up;  // likewise
  Float type;
  int64_t rows, size;
};

/// What fused_add_rows() of forward/fused.h does.
struct AddRowsArgs {
  float* sums;           // [N, size]
  const int64_t* rows;   // [n], all different
  const float* weights;  // [n]
  const void* y;         // [n, size] of y_type
  Float y_type;
  int64_t n, size;
};

/// out = (a - b) factors, for bfloat16 [rows, size] and factors [rows]. `b` may be nullptr, which
/// stands for 0, and so may `factors`, which stands for 1.
struct ScaleRowsArgs {
  const void *a, *b;
  const float* factors;
  void* out;
  int64_t rows, size;
};

extern "C" {
using AqCudaFit = const char*(const Grid&, const FitArgs&, int device, void* stream);
using AqCudaRound = const char*(const Grid&, const RoundArgs&, int device, void* stream);
using AqCudaSolve = const char*(const Grid&, const SolveArgs&, int device, void* stream);
using AqCudaRefit = const char*(const Grid&, const RefitArgs&, int device, void* stream);
using AqCudaSweep = const char*(const Grid&, const SweepArgs&, int device, void* stream);
using AqCudaInvertFactor = const char*(const InvertFactorArgs&, int device, void* stream);
using AqCudaPermute = const char*(const PermuteArgs&, int device, void* stream);
using AqCudaRmsNorm = const char*(const RmsNormArgs&, int device, void* stream);
using AqCudaRotate = const char*(const RotateArgs&, int device, void* stream);
using AqCudaSiluTimes = const char*(const SiluTimesArgs&, int device, void* stream);
using AqCudaAddRows = const char*(const AddRowsArgs&, int device, void* stream);
using AqCudaScaleRows = const char*(const ScaleRowsArgs&, int device, void* stream);
AqCudaFit aq_cuda_fit;
AqCudaRound aq_cuda_round;
AqCudaSolve aq_cuda_solve;
AqCudaRefit aq_cuda_refit;
AqCudaSweep aq_cuda_sweep;
AqCudaInvertFactor aq_cuda_invert_factor;
AqCudaPermute aq_cuda_permute;
AqCudaRmsNorm aq_cuda_rms_norm;
AqCudaRotate aq_cuda_rotate;
AqCudaSiluTimes aq_cuda_silu_times;
AqCudaAddRows aq_cuda_add_rows;
AqCudaScaleRows aq_cuda_scale_rows;
}

}  // namespace aqhost::cuda
