// The inverses of the Cholesky factors of small matrices.

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace aqhost::cuda {
namespace {

constexpr int kMaximumSize = 64;
constexpr int kThreads = 256;
constexpr int kParts = kThreads / kMaximumSize;  // of a sum over a row

/// Replaces the lower triangle of a [n, n] by its Cholesky factor, column after column.
__device__ void factor(double (&a)[kMaximumSize][kMaximumSize + 1], int n) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int j = 0; j < n; j++) {
    const double pivot = sqrt(a[j][j]);  // NaN if the matrix is not positive definite
    __syncthreads();
    for (int i = j + static_cast<int>(threadIdx.x); i < n; i += kThreads)
      a[i][j] = i == j ? pivot : a[i][j] / pivot;
    __syncthreads();
    for (int r = j + 1 + warp; r < n; r += kThreads / kWarp)
      for (int c = j + 1 + lane; c <= r; c += kWarp) a[r][c] -= a[r][j] * a[c][j];
    __syncthreads();
  }
}

/// Replaces the lower triangular a [n, n] by its inverse, row after row: row i of the inverse needs
/// row i of `a` and the rows of the inverse before it.
__device__ void invert(double (&a)[kMaximumSize][kMaximumSize + 1], int n) {
  __shared__ double row[kMaximumSize], sums[kParts][kMaximumSize];
  const int j = static_cast<int>(threadIdx.x) % kMaximumSize;
  const int part = static_cast<int>(threadIdx.x) / kMaximumSize;
  for (int i = 0; i < n; i++) {
    if (part == 0) row[j] = j <= i ? a[i][j] : 0;
    __syncthreads();
    double sum = 0;
    for (int k = j + part; k < i; k += kParts) sum += row[k] * a[k][j];
    sums[part][j] = sum;
    const double diagonal = row[i];
    __syncthreads();
    if (part > 0 || j > i) continue;
    for (int p = 1; p < kParts; p++) sum += sums[p][j];
    a[i][j] = (i == j ? 1 : -sum) / diagonal;
  }
  __syncthreads();
}

/// One thread block takes one matrix.
__global__ void __launch_bounds__(kThreads) invert_factor_kernel(const InvertFactorArgs a) {
  __shared__ double tile[kMaximumSize][kMaximumSize + 1];
  double* matrix = a.matrices + blockIdx.x * a.matrix_stride;
  const int n = static_cast<int>(a.n);
  for (int i = static_cast<int>(threadIdx.x); i < n * n; i += kThreads)
    tile[i / n][i % n] = matrix[i / n * a.row_stride + i % n];
  __syncthreads();
  factor(tile, n);
  invert(tile, n);
  for (int i = static_cast<int>(threadIdx.x); i < n * n; i += kThreads)
    matrix[i / n * a.row_stride + i % n] = i % n <= i / n ? tile[i / n][i % n] : 0;
}

}  // namespace

extern "C" const char* aq_cuda_invert_factor(const InvertFactorArgs& args, int device,
                                             void* stream) {
  if (const char* error = use(device)) return error;
  if (args.n > kMaximumSize) return "a matrix of more than 64 columns";
  if (args.count * args.n == 0) return nullptr;
  invert_factor_kernel<<<static_cast<unsigned>(args.count), kThreads, 0,
                         static_cast<cudaStream_t>(stream)>>>(args);
  return last_error();
}

}  // namespace aqhost::cuda
