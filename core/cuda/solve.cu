// The loops of GPTQ on the GPU. Compiled without implicit fused multiply-add, because formats are
// defined to the last bit. block_kernel() uses it explicitly, because no format defines its sums.

#include <cuda_pipeline.h>

#include <type_traits>

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

// A thread block takes kRows rows through a block of columns, one row per thread. Columns are
// rounded in panels: a thread holds its part of a panel in registers, and then passes what the
// panel leaves to the columns after it, which lie in shared memory.
constexpr int kRows = 64, kPanel = 16;

struct BlockTiles {
  // a row of these has one element more than there are rows, so that neighbouring columns lie in
  // different banks
  float x[kMaximumColumns][kRows + 1];  // weights, or the gradient; values when they are known
  float step[kPanel][kRows + 1], zero[kPanel][kRows + 1];
  float change[kPanel][kRows + 1];  // errors; or values before and then their change
  uint8_t codes[kPanel][kRows + 4];
  alignas(16) float matrix[2][kPanel][kMaximumColumns];  // rows of U or H, of every other panel
  int32_t group[kMaximumColumns];                        // of each column
  Grid grid;
};

/// How GPTQ takes a column: what is left, divided by the diagonal, is passed on.
struct SolveColumn {
  static __device__ const float* input(const SolveArgs& a) { return a.weights; }
  static __device__ const float* matrix(const SolveArgs& a) { return a.upper; }
  static __device__ uint32_t original(const SolveArgs& a, int64_t e, int c) {
    return static_cast<uint32_t>(a.order[e * a.cols + c]);
  }
  static __device__ float wanted(float x, float, float) { return x; }
  static __device__ float passed(float x, float, float stored, float diagonal) {
    return (x - stored) / diagonal;
  }
};

/// How a sweep takes a column: `x` is the gradient, and the change of the value is passed on.
struct SweepColumn {
  static __device__ const float* input(const SweepArgs& a) { return a.gradient; }
  static __device__ const float* matrix(const SweepArgs& a) { return a.hessians; }
  static __device__ uint32_t original(const SweepArgs& a, int64_t, int c) {
    return static_cast<uint32_t>(a.begin + c);
  }
  static __device__ float wanted(float x, float before, float diagonal) {
    return before - x / diagonal;
  }
  static __device__ float passed(float, float before, float stored, float) {
    return before - stored;
  }
};

/// Calls body(row, column, k) for all rows and `columns` columns of a thread block, so that
/// neighbouring threads have neighbouring columns. k counts the calls of a thread. Unrolled, so
/// that many loads are on their way at once.
template <int columns, typename Body>
__device__ void each_element(Body body) {
#pragma unroll kPanel
  for (int k = 0; k < columns; k++) {
    const int i = k * kRows + static_cast<int>(threadIdx.x);
    body(i / columns, i % columns, k);
  }
}

/// What a thread loads of the next panel while it computes: of 16 elements that neighbouring
/// threads also have neighbours of; see each_element().
struct NextPanel {
  float scale[kPanel], zero[kPanel], before[kPanel];
};

template <typename Column, typename Args>
__global__ void __launch_bounds__(kRows)
    block_kernel(const __grid_constant__ Grid parameter, const Args a) {
  constexpr bool kSolves = std::is_same_v<Args, SolveArgs>;
  extern __shared__ float4 memory[];
  BlockTiles& tiles = *reinterpret_cast<BlockTiles*>(memory);
  const Grid& grid = tiles.grid;
  const int own = static_cast<int>(threadIdx.x), n = static_cast<int>(a.n);
  const int64_t e = blockIdx.y, begin = int64_t{blockIdx.x} * kRows;
  const int64_t first = e * a.rows + begin;  // of all rows of all matrices
  const int rows = static_cast<int>(min(int64_t{kRows}, a.rows - begin));
  const float* matrix = Column::matrix(a) + e * a.cols * a.cols;
  const float global = global_of(a.globals, e);
  const int n_params = static_cast<int>(parameter.desc.group_params);
  for (int c = own; c < n; c += kRows)
    tiles.group[c] =
        static_cast<int32_t>(Column::original(a, e, c) / static_cast<uint32_t>(a.width));
  load_grid(parameter, tiles.grid);  // and waits for all threads

  NextPanel next;
  const auto load_panel = [&](int p) {
#pragma unroll 4
    for (int k = 0; k < kPanel * kMaximumColumns / kRows; k++) {
      const int i = k * kRows + own, r = i / kMaximumColumns, c = i % kMaximumColumns;
      const bool inside = p + r < n && c < n;
      __pipeline_memcpy_async(&tiles.matrix[p / kPanel % 2][r][c],
                              matrix + (inside ? (p + r) * a.cols + c : 0), sizeof(float),
                              inside ? 0 : sizeof(float));
    }
    __pipeline_commit();
    each_element<kPanel>([&](int r, int c, int k) {
      next.scale[k] = global;
      next.zero[k] = next.before[k] = 0;
      if (r >= rows || p + c >= n) return;
      const float* params = a.params + ((first + r) * a.groups + tiles.group[p + c]) * n_params;
      next.scale[k] = __ldg(params);
      if (n_params > 1) next.zero[k] = __ldg(params + 1);
      if (!kSolves) next.before[k] = a.values[(first + r) * a.row_stride + p + c];
    });
  };
  load_panel(0);
  each_element<kMaximumColumns>([&](int r, int c, int) {
    tiles.x[c][r] = r < rows && c < n ? Column::input(a)[(first + r) * a.row_stride + c] : 0;
  });

  double loss = 0;
  for (int p = 0; p < n; p += kPanel) {
    each_element<kPanel>([&](int r, int c, int k) {
      tiles.step[c][r] = next.scale[k] / global;
      tiles.zero[c][r] = next.zero[k];
      if (!kSolves) tiles.change[c][r] = next.before[k];
    });
    __pipeline_wait_prior(0);
    __syncthreads();
    if (p + kPanel < n) load_panel(p + kPanel);

    const auto& panel = tiles.matrix[p / kPanel % 2];
    float x[kPanel], passed[kPanel];
#pragma unroll
    for (int i = 0; i < kPanel; i++) x[i] = tiles.x[p + i][own];
#pragma unroll
    for (int i = 0; i < kPanel; i++) {
      const float step = tiles.step[i][own], diagonal = panel[i][p + i];
      const float before = kSolves ? 0 : tiles.change[i][own];
      const Rounded rounded =
          round_to_grid(grid, Column::wanted(x[i], before, diagonal) / step, tiles.zero[i][own]);
      const float stored = rounded.value * step;
      passed[i] = Column::passed(x[i], before, stored, diagonal);
      tiles.x[p + i][own] = stored;
      tiles.codes[i][own] = static_cast<uint8_t>(rounded.code);
      tiles.change[i][own] = kSolves ? passed[i] : stored - before;
      if (kSolves && p + i < n)
        loss += 0.5 * static_cast<double>(passed[i]) * static_cast<double>(passed[i]);
#pragma unroll
      for (int j = i + 1; j < kPanel; j++) x[j] = __fmaf_rn(-passed[i], panel[i][p + j], x[j]);
    }
    for (int c = p + kPanel; c < n; c += 4) {
      float y[4];
#pragma unroll
      for (int k = 0; k < 4; k++) y[k] = tiles.x[c + k][own];
#pragma unroll
      for (int i = 0; i < kPanel; i++) {
        const float4 m = *reinterpret_cast<const float4*>(&panel[i][c]);
        y[0] = __fmaf_rn(-passed[i], m.x, y[0]);
        y[1] = __fmaf_rn(-passed[i], m.y, y[1]);
        y[2] = __fmaf_rn(-passed[i], m.z, y[2]);
        y[3] = __fmaf_rn(-passed[i], m.w, y[3]);
      }
#pragma unroll
      for (int k = 0; k < 4; k++) tiles.x[c + k][own] = y[k];
    }
    __syncthreads();
    each_element<kPanel>([&](int r, int c, int) {
      if (r >= rows || p + c >= n) return;
      const int64_t place = (first + r) * a.row_stride + p + c;
      a.codes[place] = tiles.codes[c][r];
      a.values[place] = tiles.x[p + c][r];
      if constexpr (kSolves)
        a.errors[(first + r) * a.error_stride + p + c] = tiles.change[c][r];
      else
        a.change[(first + r) * a.n + p + c] = tiles.change[c][r];
    });
    __syncthreads();  // the tiles of the panel are free
  }
  if constexpr (kSolves)
    if (own < rows) a.loss[first + own] += loss;
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

template <typename Column, typename Args>
const char* launch_block(const Grid& grid, const Args& args, int device, void* stream) {
  if (const char* error = use(device)) return error;
  if (args.n > kMaximumColumns) return "a block of more than 128 columns";
  if (args.count * args.rows == 0) return nullptr;
  const auto kernel = block_kernel<Column, Args>;
  if (const char* error = text_of(cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{sizeof(BlockTiles)})))
    return error;
  const dim3 size(blocks(args.rows, kRows), static_cast<unsigned>(args.count));
  kernel<<<size, kRows, sizeof(BlockTiles), static_cast<cudaStream_t>(stream)>>>(grid, args);
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
  return launch_block<SolveColumn>(grid, args, device, stream);
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
  return launch_block<SweepColumn>(grid, args, device, stream);
}

}  // namespace aqhost::cuda
