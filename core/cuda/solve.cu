// The loops of GPTQ on the GPU. Compiled without implicit fused multiply-add, because formats are
// defined to the last bit. pass_on() uses it explicitly, because no format defines its sums.

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace aqhost::cuda {
namespace {

using aq::GroupParams, aq::Rounded;

constexpr int kMaximumColumns = 128;

/// Copies the grid to shared memory, because threads read its tables at different addresses.
__device__ void load_grid(const Grid& from, Grid& to) {
  const auto* source = reinterpret_cast<const uint32_t*>(&from);
  auto* target = reinterpret_cast<uint32_t*>(&to);
  for (unsigned i = threadIdx.x; i < sizeof(Grid) / 4; i += blockDim.x) target[i] = source[i];
  __syncthreads();
}
static_assert(sizeof(Grid) % 4 == 0 && sizeof(Grid) < 4000, "a kernel's parameters are 4 KB");

__device__ double sum_of_lanes(double x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAll, x, offset);
  return x;
}

/// The extent of n weights, in every lane.
__device__ aq::Extent extent_of(const float* weights, int64_t n, int lane) {
  aq::Extent extent;
  for (int64_t i = lane; i < n; i += kWarp) extent.add(weights[i]);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    extent.min = fminf(extent.min, __shfl_xor_sync(kAll, extent.min, offset));
    extent.max = fmaxf(extent.max, __shfl_xor_sync(kAll, extent.max, offset));
  }
  return extent;
}

__device__ float global_of(const float* globals, int64_t matrix) {
  return globals != nullptr ? globals[matrix] : 1.0f;
}

/// The step (scale / global) and the zero of one group of a row, of all rows of all matrices.
template <typename Args>
__device__ void load_scale(const Grid& grid, const Args& a, int64_t row, int64_t group,
                           float global, float& step, float& zero) {
  const float* params = a.params + (row * a.groups + group) * grid.desc.group_params;
  step = params[0] / global;
  zero = grid.desc.group_params > 1 ? params[1] : 0.0f;
}

/// The errors of two candidates over a group, each summed in the order of the columns.
__device__ void errors_of(const Grid& grid, const float* weights, const float* importance,
                          int64_t n, float global, const GroupParams* params, double* errors) {
  const float step0 = params[0].scale / global, step1 = params[1].scale / global;
  for (int64_t i = 0; i < n; i++) {
    const float w = __ldg(weights + i);
    const double h = importance != nullptr ? static_cast<double>(__ldg(importance + i)) : 1.0;
    const float stored0 = round_to_grid(grid, w / step0, params[0].zero).value * step0;
    const float stored1 = round_to_grid(grid, w / step1, params[1].zero).value * step1;
    errors[0] += aq::weighted_error(w, stored0, h);
    errors[1] += aq::weighted_error(w, stored1, h);
  }
}

/// One warp fits one group; each lane tries two of the search factors.
__global__ void __launch_bounds__(kWarps* kWarp)
    fit_kernel(const __grid_constant__ Grid parameter, const FitArgs a, int64_t groups) {
  __shared__ Grid grid;
  load_grid(parameter, grid);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (task >= a.count * a.rows * groups) return;
  const int64_t row = task / groups, g = task % groups, e = row / a.rows;
  const int64_t begin = g * a.width, n = min(a.width, a.cols - begin);
  const float* weights = a.weights + row * a.row_stride + begin;
  const float* importance =
      a.importance != nullptr ? a.importance + e * a.importance_stride + begin : nullptr;
  const float global = global_of(a.globals, e);
  const aq::Extent extent = extent_of(weights, n, lane);

  GroupParams best;
  if (grid.desc.n_search == 0) {
    best = aq::params_for(grid.desc, extent, global, 1.0f);
  } else {
    const int last = static_cast<int>(grid.desc.n_search) - 1;
    const GroupParams candidates[2] = {
        aq::params_for(grid.desc, extent, global, grid.search[min(lane, last)]),
        aq::params_for(grid.desc, extent, global, grid.search[min(lane + kWarp, last)])};
    double errors[2] = {0, 0};
    errors_of(grid, weights, importance, n, global, candidates, errors);
    const double infinity = __longlong_as_double(0x7ff0000000000000ll);
    double error = infinity;
    int index = Grid::kMaximumSearch;  // of the first factor with the minimum error
    for (int k = 0; k < 2; k++) {
      if (lane + k * kWarp > last || !(errors[k] < error)) continue;
      error = errors[k];
      index = lane + k * kWarp;
      best = candidates[k];
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const double other = __shfl_xor_sync(kAll, error, offset);
      const int other_index = __shfl_xor_sync(kAll, index, offset);
      const float scale = __shfl_xor_sync(kAll, best.scale, offset);
      const float zero = __shfl_xor_sync(kAll, best.zero, offset);
      if (other < error || (other == error && other_index < index)) {
        error = other;
        index = other_index;
        best.scale = scale;
        best.zero = zero;
      }
    }
  }
  if (lane != 0) return;
  float* out = a.params + row * a.param_stride + g * grid.desc.group_params;
  out[0] = best.scale;
  if (grid.desc.group_params > 1) out[1] = best.zero;
}

__global__ void round_kernel(const __grid_constant__ Grid parameter, const RoundArgs a) {
  __shared__ Grid grid;
  load_grid(parameter, grid);
  const int64_t total = a.count * a.rows * a.cols;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += stride) {
    const int64_t row = i / a.cols, g = i % a.cols / a.width;
    float step, zero;
    load_scale(grid, a, row, g, global_of(a.globals, row / a.rows), step, zero);
    const Rounded rounded = round_to_grid(grid, a.weights[i] / step, zero);
    a.codes[i] = static_cast<uint8_t>(rounded.code);
    a.values[i] = rounded.value * step;
  }
}

/// A block's columns of one row, spread over a warp: column 32 k + lane is in register k of a lane.
constexpr int kRegisters = kMaximumColumns / kWarp;
struct BlockRow {
  int lane;
  int64_t index;  // of all rows of all matrices
  float step[kRegisters], zero[kRegisters];

  __device__ static int column(int k, int lane) { return k * kWarp + lane; }
  /// `column_of(c)` is the original column of column c of the block.
  template <typename ColumnOf>
  __device__ void load_scales(const Grid& grid, const BlockArgs& a, ColumnOf column_of) {
    const float global = global_of(a.globals, index / a.rows);
#pragma unroll
    for (int k = 0; k < kRegisters; k++) {
      const int c = column(k, lane);
      step[k] = 1;
      zero[k] = 0;
      if (c < a.n) load_scale(grid, a, index, column_of(c) / a.width, global, step[k], zero[k]);
    }
  }
};

/// Passes what each column leaves to the columns after it: x[j] -= leaves(column i) matrix[i][j]
/// for all i < j < n in turn. leaves(k, d) is for a lane's register k, whose x is final then; d is
/// the diagonal element of the column that the warp has reached, so only the lane of that column
/// computes something useful.
template <bool kWhole, typename Leaves>
__device__ void pass_on(const float* matrix, int64_t stride, int n, int lane, float* x,
                        Leaves leaves) {
#pragma unroll
  for (int k = 0; k < kRegisters; k++) {
    for (int l = 0; l < kWarp; l++) {
      const int i = k * kWarp + l;
      if (!kWhole && i >= n) break;
      const float* row = matrix + i * stride;
      const float passed = __shfl_sync(kAll, leaves(k, __ldg(row + i)), l);
#pragma unroll
      for (int m = k; m < kRegisters; m++) {
        const int j = m * kWarp + lane;
        if ((m > k || lane > l) && (kWhole || j < n))
          x[m] = __fmaf_rn(-passed, __ldg(row + j), x[m]);
      }
    }
  }
}

/// One warp solves one row of the block.
template <bool kWhole>
__global__ void __launch_bounds__(kWarps* kWarp)
    solve_kernel(const __grid_constant__ Grid parameter, const SolveArgs a) {
  __shared__ Grid grid;
  load_grid(parameter, grid);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, e = blockIdx.y;
  if (row >= a.rows) return;
  const int n = static_cast<int>(a.n);
  BlockRow block{lane, e * a.rows + row};
  block.load_scales(grid, a, [&](int c) { return a.order[e * a.cols + c]; });
  float w[kRegisters];
#pragma unroll
  for (int k = 0; k < kRegisters; k++) {
    const int c = BlockRow::column(k, lane);
    w[k] = c < n ? a.weights[block.index * a.row_stride + c] : 0;
  }

  const auto round = [&](int k) {
    return round_to_grid(grid, w[k] / block.step[k], block.zero[k]);
  };
  const float* upper = a.upper + e * a.cols * a.cols;
  pass_on<kWhole>(upper, a.cols, n, lane, w, [&](int k, float diagonal) {
    return (w[k] - round(k).value * block.step[k]) / diagonal;
  });

  double loss = 0;
#pragma unroll
  for (int k = 0; k < kRegisters; k++) {
    const int c = BlockRow::column(k, lane);
    if (c >= n) continue;
    const Rounded rounded = round(k);
    const float stored = rounded.value * block.step[k];
    const float error = (w[k] - stored) / __ldg(upper + c * a.cols + c);
    a.codes[block.index * a.row_stride + c] = static_cast<uint8_t>(rounded.code);
    a.values[block.index * a.row_stride + c] = stored;
    a.errors[block.index * a.error_stride + c] = error;
    loss += 0.5 * static_cast<double>(error) * static_cast<double>(error);
  }
  loss = sum_of_lanes(loss);
  if (lane == 0) a.loss[block.index] += loss;
}

/// One warp refits the group of one row.
__global__ void __launch_bounds__(kWarps* kWarp)
    refit_kernel(const __grid_constant__ Grid parameter, const RefitArgs a) {
  __shared__ Grid grid;
  load_grid(parameter, grid);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= a.count * a.rows) return;
  const uint8_t* codes = a.codes + row * a.row_stride;
  const float* gradient = a.gradient + row * a.row_stride;
  const float* products = a.products + row * a.n;
  float* values = a.values + row * a.row_stride;
  float* change = a.change + row * a.n;
  double slope = 0, bend = 0;  // of the loss, by the scale's relative change
  for (int64_t c = lane; c < a.n; c += kWarp) {
    const double v = values[c];
    slope += v * gradient[c];
    bend += v * products[c];
  }
  slope = sum_of_lanes(slope);
  bend = sum_of_lanes(bend);
  float* params = a.params + row * a.param_stride;
  const float scale = params[0], zero = grid.desc.group_params > 1 ? params[1] : 0.0f;
  float fitted = scale;
  if (bend > 0) {
    const double factor = fmin(fmax(1 - slope / bend, 0.5), 2.0);
    fitted = aq::round_scale(grid.desc, scale * static_cast<float>(factor));
    const double moved = static_cast<double>(fitted) / static_cast<double>(scale) - 1;
    if (!(slope * moved + bend * moved * moved / 2 < 0)) fitted = scale;
  }
  const float step = fitted / global_of(a.globals, row / a.rows);
  for (int64_t c = lane; c < a.n; c += kWarp) {
    const float before = values[c];
    const float after = fitted == scale ? before : value_of(grid, codes[c], zero) * step;
    values[c] = after;
    change[c] = after - before;
  }
  if (lane == 0) params[0] = fitted;
}

/// One warp takes one row through the block.
template <bool kWhole>
__global__ void __launch_bounds__(kWarps* kWarp)
    sweep_kernel(const __grid_constant__ Grid parameter, const SweepArgs a) {
  __shared__ Grid grid;
  load_grid(parameter, grid);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, e = blockIdx.y;
  if (row >= a.rows) return;
  const int n = static_cast<int>(a.n);
  BlockRow block{lane, e * a.rows + row};
  block.load_scales(grid, a, [&](int c) { return a.begin + c; });
  float g[kRegisters], before[kRegisters];
#pragma unroll
  for (int k = 0; k < kRegisters; k++) {
    const int c = BlockRow::column(k, lane);
    g[k] = c < n ? a.gradient[block.index * a.row_stride + c] : 0;
    before[k] = c < n ? a.values[block.index * a.row_stride + c] : 0;
  }

  const auto round = [&](int k, float diagonal) {
    return round_to_grid(grid, (before[k] - g[k] / diagonal) / block.step[k], block.zero[k]);
  };
  const float* hessian = a.hessians + e * a.cols * a.cols;
  pass_on<kWhole>(hessian, a.cols, n, lane, g, [&](int k, float diagonal) {
    return before[k] - round(k, diagonal).value * block.step[k];
  });

#pragma unroll
  for (int k = 0; k < kRegisters; k++) {
    const int c = BlockRow::column(k, lane);
    if (c >= n) continue;
    const Rounded rounded = round(k, __ldg(hessian + c * a.cols + c));
    const float value = rounded.value * block.step[k];
    a.codes[block.index * a.row_stride + c] = static_cast<uint8_t>(rounded.code);
    a.values[block.index * a.row_stride + c] = value;
    a.change[block.index * n + c] = value - before[k];
  }
}

/// Starts `whole`, which takes blocks of 128 columns only, or else `part`, one warp for each row.
template <typename Kernel, typename Args>
const char* launch_block(Kernel whole, Kernel part, const Grid& grid, const Args& args, int device,
                         void* stream) {
  if (const char* error = use(device)) return error;
  if (args.n > kMaximumColumns) return "a block of more than 128 columns";
  if (args.count * args.rows == 0) return nullptr;
  const Kernel kernel = args.n == kMaximumColumns ? whole : part;
  const dim3 size(blocks(args.rows, kWarps), static_cast<unsigned>(args.count));
  kernel<<<size, kWarps * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(grid, args);
  return last_error();
}

}  // namespace

extern "C" const char* aq_cuda_fit(const Grid& grid, const FitArgs& args, int device,
                                   void* stream) {
  if (const char* error = use(device)) return error;
  const int64_t groups = (args.cols + args.width - 1) / args.width;
  const int64_t tasks = args.count * args.rows * groups;
  if (tasks == 0) return nullptr;
  fit_kernel<<<blocks(tasks, kWarps), kWarps * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(
      grid, args, groups);
  return last_error();
}

extern "C" const char* aq_cuda_round(const Grid& grid, const RoundArgs& args, int device,
                                     void* stream) {
  if (const char* error = use(device)) return error;
  constexpr unsigned kThreads = 256, kMaximumBlocks = 1u << 16;
  const int64_t total = args.count * args.rows * args.cols;
  if (total == 0) return nullptr;
  round_kernel<<<min(blocks(total, kThreads), kMaximumBlocks), kThreads, 0,
                 static_cast<cudaStream_t>(stream)>>>(grid, args);
  return last_error();
}

extern "C" const char* aq_cuda_solve(const Grid& grid, const SolveArgs& args, int device,
                                     void* stream) {
  return launch_block(solve_kernel<true>, solve_kernel<false>, grid, args, device, stream);
}

extern "C" const char* aq_cuda_refit(const Grid& grid, const RefitArgs& args, int device,
                                     void* stream) {
  if (const char* error = use(device)) return error;
  const int64_t tasks = args.count * args.rows;
  if (tasks == 0) return nullptr;
  refit_kernel<<<blocks(tasks, kWarps), kWarps * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(
      grid, args);
  return last_error();
}

extern "C" const char* aq_cuda_sweep(const Grid& grid, const SweepArgs& args, int device,
                                     void* stream) {
  return launch_block(sweep_kernel<true>, sweep_kernel<false>, grid, args, device, stream);
}

}  // namespace aqhost::cuda
