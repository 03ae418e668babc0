// Steps of a layer, each in one pass over memory. They compute in float32. One warp takes one row;
// each lane reads and writes several neighbouring numbers at once.

#include <cuda_bf16.h>

#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace aqhost::cuda {
namespace {

constexpr int kThreads = kWarps * kWarp;
constexpr int kMaximumVector = 4;  // numbers at once

__device__ float widen(float x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T>
__device__ T narrow(float x);
template <>
__device__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
/// x as the type T stores it.
template <typename T>
__device__ float stored(float x) {
  return widen(narrow<T>(x));
}

/// n neighbouring numbers in memory.
template <typename T, int n>
struct alignas(sizeof(T) * n) Pack {
  T x[n];
};
template <int n, typename T>
__device__ void load(const T* from, float (&to)[n]) {
  const auto pack = *reinterpret_cast<const Pack<T, n>*>(from);
#pragma unroll
  for (int i = 0; i < n; i++) to[i] = widen(pack.x[i]);
}
template <int n, typename T>
__device__ void store(const float (&from)[n], T* to) {
  Pack<T, n> pack;
#pragma unroll
  for (int i = 0; i < n; i++) pack.x[i] = narrow<T>(from[i]);
  *reinterpret_cast<Pack<T, n>*>(to) = pack;
}

__device__ int lane_of() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ int64_t row_of() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; }

/// Calls body(column) for the first of every n columns of a row that a lane takes together.
template <int n, typename Body>
__device__ void each_column(int64_t size, Body body) {
  for (int64_t c = int64_t{lane_of()} * n; c < size; c += int64_t{kWarp} * n) body(c);
}

template <int n, typename X, typename Out>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNormArgs a) {
  const int64_t row = row_of();
  if (row >= a.rows) return;
  const X* x = static_cast<const X*>(a.x) + row * a.size;
  float sum = 0, values[n], weights[n];
  each_column<n>(a.size, [&](int64_t c) {
    load(x + c, values);
    for (const float value : values) sum += value * value;
  });
  for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
  const float factor = 1 / sqrtf(sum / static_cast<float>(a.size) + a.eps);
  Out* out = static_cast<Out*>(a.out) + row * a.size;
  each_column<n>(a.size, [&](int64_t c) {
    load(x + c, values);
    load(static_cast<const Out*>(a.weight) + c, weights);
    for (int i = 0; i < n; i++) values[i] = stored<Out>(values[i] * factor) * weights[i];
    store(values, out + c);
  });
}

/// A row is one head of one token.
template <typename T>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const RotateArgs a) {
  const int64_t row = row_of();
  if (row >= a.batch * a.tokens * a.heads) return;
  const int64_t token = row / a.heads % a.tokens, step = a.interleaved ? 2 : 1;
  T* x = static_cast<T*>(a.x) + row * a.size;
  T* y = x + (a.interleaved ? 1 : a.half);
  each_column<1>(a.half, [&](int64_t c) {
    const float cos = widen(static_cast<const T*>(a.cos)[token * a.half + c]);
    const float sin = widen(static_cast<const T*>(a.sin)[token * a.half + c]);
    const float before_x = widen(x[c * step]), before_y = widen(y[c * step]);
    x[c * step] = narrow<T>(before_x * cos - before_y * sin);
    y[c * step] = narrow<T>(before_y * cos + before_x * sin);
  });
}

template <int n, typename T>
__global__ void __launch_bounds__(kThreads) silu_times_kernel(const SiluTimesArgs a) {
  const int64_t row = row_of();
  if (row >= a.rows) return;
  T* gate = static_cast<T*>(a.gate) + row * a.size;
  const T* up = static_cast<const T*>(a.up) + row * a.size;
  each_column<n>(a.size, [&](int64_t c) {
    float values[n], factors[n];
    load(gate + c, values);
    load(up + c, factors);
    for (int i = 0; i < n; i++)
      values[i] = stored<T>(values[i] / (1 + expf(-values[i]))) * factors[i];
    store(values, gate + c);
  });
}

template <int n, typename T>
__global__ void __launch_bounds__(kThreads) add_rows_kernel(const AddRowsArgs a) {
  const int64_t row = row_of();
  if (row >= a.n) return;
  const T* y = static_cast<const T*>(a.y) + row * a.size;
  float* to = a.sums + a.rows[row] * a.size;
  const float weight = a.weights[row];
  each_column<n>(a.size, [&](int64_t c) {
    float sums[n], values[n];
    load(to + c, sums);
    load(y + c, values);
    for (int i = 0; i < n; i++) sums[i] += values[i] * weight;
    store(sums, to + c);
  });
}

template <int n>
__global__ void __launch_bounds__(kThreads) scale_rows_kernel(const ScaleRowsArgs args) {
  using T = __nv_bfloat16;
  const int64_t row = row_of();
  if (row >= args.rows) return;
  const T* a = static_cast<const T*>(args.a) + row * args.size;
  const T* b = args.b != nullptr ? static_cast<const T*>(args.b) + row * args.size : nullptr;
  const float factor = args.factors != nullptr ? args.factors[row] : 1.0f;
  each_column<n>(args.size, [&](int64_t c) {
    float values[n], less[n] = {};
    load(a + c, values);
    if (b != nullptr) load(b + c, less);
    for (int i = 0; i < n; i++) values[i] = (values[i] - less[i]) * factor;
    store(values, static_cast<T*>(args.out) + row * args.size + c);
  });
}

/// Calls body(T()) with the element type that `type` names.
template <typename Body>
void with_type(Float type, Body body) {
  if (type == Float::kFloat32)
    body(float());
  else
    body(__nv_bfloat16());
}

/// Calls body(n) with the number of numbers that a lane can take at once, as a constant.
template <typename Body>
void with_vector(int64_t size, Body body) {
  if (size % kMaximumVector == 0)
    body(std::integral_constant<int, kMaximumVector>());
  else
    body(std::integral_constant<int, 1>());
}

}  // namespace

extern "C" const char* aq_cuda_rms_norm(const RmsNormArgs& args, int device, void* stream) {
  if (const char* error = use(device)) return error;
  if (args.rows * args.size == 0) return nullptr;
  with_vector(args.size, [&](auto n) {
    with_type(args.x_type, [&](auto x) {
      with_type(args.out_type, [&](auto out) {
        rms_norm_kernel<n.value, decltype(x), decltype(out)>
            <<<blocks(args.rows, kWarps), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
      });
    });
  });
  return last_error();
}

extern "C" const char* aq_cuda_rotate(const RotateArgs& args, int device, void* stream) {
  if (const char* error = use(device)) return error;
  const int64_t rows = args.batch * args.tokens * args.heads;
  if (rows * args.half == 0) return nullptr;
  with_type(args.type, [&](auto type) {
    rotate_kernel<decltype(type)>
        <<<blocks(rows, kWarps), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  return last_error();
}

extern "C" const char* aq_cuda_silu_times(const SiluTimesArgs& args, int device, void* stream) {
  if (const char* error = use(device)) return error;
  if (args.rows * args.size == 0) return nullptr;
  with_vector(args.size, [&](auto n) {
    with_type(args.type, [&](auto type) {
      silu_times_kernel<n.value, decltype(type)>
          <<<blocks(args.rows, kWarps), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
    });
  });
  return last_error();
}

extern "C" const char* aq_cuda_add_rows(const AddRowsArgs& args, int device, void* stream) {
  if (const char* error = use(device)) return error;
  if (args.n * args.size == 0) return nullptr;
  with_vector(args.size, [&](auto n) {
    with_type(args.y_type, [&](auto type) {
      add_rows_kernel<n.value, decltype(type)>
          <<<blocks(args.n, kWarps), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
    });
  });
  return last_error();
}

extern "C" const char* aq_cuda_scale_rows(const ScaleRowsArgs& args, int device, void* stream) {
  if (const char* error = use(device)) return error;
  if (args.rows * args.size == 0) return nullptr;
  with_vector(args.size, [&](auto n) {
    scale_rows_kernel<n.value>
        <<<blocks(args.rows, kWarps), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  return last_error();
}

}  // namespace aqhost::cuda
