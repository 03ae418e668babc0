// The inverses of the Cholesky factors of small matrices, and permutations of matrices.

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace aqhost::cuda {
namespace {

// A matrix of 128 columns lies in the registers of 16 x 32 threads. Thread (y, x) holds rows y,
// y + 16, ... and columns x, x + 32, ...
constexpr int kMaximumSize = 128;
constexpr int kRowStep = 16, kColumnStep = 32;
constexpr int kRowsEach = kMaximumSize / kRowStep, kColumnsEach = kMaximumSize / kColumnStep;
constexpr int kThreads = kRowStep * kColumnStep;

/// One thread block takes one matrix A. With A = M D M^T, where D is diagonal and M has 1 on its
/// diagonal, elimination makes A to D, and the same steps make the identity to M^-1; L^-1 is
/// D^-1/2 M^-1. Each step takes one column away from A and adds one to M^-1, so both have room in
/// one matrix, of which only the lower triangle has a meaning.
__global__ void __launch_bounds__(kThreads) invert_factor_kernel(const InvertFactorArgs args) {
  // of every other step: the column of A below the diagonal, and before it the row of M^-1
  __shared__ double lines[2][kMaximumSize], pivots[kMaximumSize];
  double* matrix = args.matrices + blockIdx.x * args.matrix_stride;
  const int n = static_cast<int>(args.n);
  const int y = static_cast<int>(threadIdx.x) / kColumnStep;
  const int x = static_cast<int>(threadIdx.x) % kColumnStep;
  double m[kRowsEach][kColumnsEach];
#pragma unroll
  for (int i = 0; i < kRowsEach; i++)
#pragma unroll
    for (int j = 0; j < kColumnsEach; j++) {
      const int row = y + i * kRowStep, column = x + j * kColumnStep;
      const bool lower = column <= row && row < n;
      m[i][j] = lower ? matrix[row * args.row_stride + column] : row == column ? 1 : 0;
    }
#pragma unroll
  for (int part = 0; part < kRowsEach; part++) {
    constexpr int kRatio = kColumnStep / kRowStep;
    const int own = part / kRatio;  // the place of the column among those of a thread
    for (int k = 0; k < kRowStep; k++) {
      const int step = part * kRowStep + k;
      double(&line)[kMaximumSize] = lines[step % 2];
      if (x == step % kColumnStep)
#pragma unroll
        for (int i = part; i < kRowsEach; i++) {
          const int row = y + i * kRowStep;
          if (row > step) line[row] = m[i][own];
          if (row == step) pivots[step] = m[i][own];
        }
      if (y == k)
#pragma unroll
        for (int j = 0; j <= own; j++)
          if (x + j * kColumnStep < step) line[x + j * kColumnStep] = m[part][j];
      __syncthreads();
      const double inverse = 1 / pivots[step];
#pragma unroll
      for (int i = part; i < kRowsEach; i++) {
        const int row = y + i * kRowStep;
        if (row < step) continue;
        const double below = row > step ? line[row] * inverse : 0;  // of M
#pragma unroll
        for (int j = 0; j < kColumnsEach; j++) {
          const int column = x + j * kColumnStep;
          if (column != step)
            m[i][j] = fma(-below, line[column], m[i][j]);
          else
            m[i][j] = row > step ? -below : 1;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsEach; i++) {
    const int row = y + i * kRowStep;
    if (row >= n) continue;
    const double root = sqrt(pivots[row]);  // NaN if the matrix is not positive definite
#pragma unroll
    for (int j = 0; j < kColumnsEach; j++) {
      const int column = x + j * kColumnStep;
      if (column < n) matrix[row * args.row_stride + column] = column <= row ? m[i][j] / root : 0;
    }
  }
}

/// One thread block takes one row, which stays in its cache.
template <typename In, typename Out>
__global__ void __launch_bounds__(kThreads) permute_kernel(const PermuteArgs a) {
  const int64_t matrix = blockIdx.x / a.rows, row = blockIdx.x % a.rows;
  const int64_t from = a.row_order != nullptr ? a.row_order[blockIdx.x] : row;
  const In* in = static_cast<const In*>(a.in) + (matrix * a.rows + from) * a.cols;
  Out* out = static_cast<Out*>(a.out) + int64_t{blockIdx.x} * a.cols;
  const int64_t* order = a.column_order + matrix * a.cols;
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < a.cols; c += kThreads)
    out[c] = static_cast<Out>(__ldg(in + __ldg(order + c)));
}

template <typename In, typename Out>
void launch_permute(const PermuteArgs& args, void* stream) {
  permute_kernel<In, Out><<<static_cast<unsigned>(args.count * args.rows), kThreads, 0,
                            static_cast<cudaStream_t>(stream)>>>(args);
}

}  // namespace

extern "C" const char* aq_cuda_permute(const PermuteArgs& args, int device, void* stream) {
  if (const char* error = use(device)) return error;
  if (args.count * args.rows * args.cols == 0) return nullptr;
  switch (args.types) {
    case Permuted::kFloatToFloat:
      launch_permute<float, float>(args, stream);
      break;
    case Permuted::kByteToByte:
      launch_permute<unsigned char, unsigned char>(args, stream);
      break;
    case Permuted::kFloatToDouble:
      launch_permute<float, double>(args, stream);
      break;
    case Permuted::kDoubleToFloat:
      launch_permute<double, float>(args, stream);
      break;
  }
  return last_error();
}

extern "C" const char* aq_cuda_invert_factor(const InvertFactorArgs& args, int device,
                                             void* stream) {
  if (const char* error = use(device)) return error;
  if (args.n > kMaximumSize) return "a matrix of more than 128 columns";
  if (args.count * args.n == 0) return nullptr;
  invert_factor_kernel<<<static_cast<unsigned>(args.count), kThreads, 0,
                         static_cast<cudaStream_t>(stream)>>>(args);
  return last_error();
}

}  // namespace aqhost::cuda
