#include "forward/fused.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <cmath>
#include <numbers>
#include <vector>

#include "tensor/kernels.h"
#include "tensor/power_of_two.h"
#include "tensor/vector_clones.h"

namespace aqhost {
namespace {

constexpr int64_t kSums = 16;        // partial sums that are computed side by side
constexpr int64_t kGrain = 1 << 14;  // minimum count of numbers per thread

AQ_VECTOR_CLONES
void widen_row(const uint16_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] = aq::from_bf16(from[i]);
}

AQ_VECTOR_CLONES
void narrow_row(const float* from, int64_t n, uint16_t* to) {
  for (int64_t i = 0; i < n; i++) to[i] = static_cast<uint16_t>(aq::to_bf16(from[i]));
}

/// Rounds to the nearest bfloat16.
AQ_VECTOR_CLONES
void round_row(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = aq::from_bf16(static_cast<uint16_t>(aq::to_bf16(x[i])));
}

AQ_VECTOR_CLONES
float sum_of_squares(const float* x, int64_t n) {
  float sums[kSums] = {}, sum = 0;
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int64_t l = 0; l < kSums; l++) sums[l] += x[i + l] * x[i + l];
  for (; i < n; i++) sum += x[i] * x[i];
  for (const float s : sums) sum += s;
  return sum;
}

AQ_VECTOR_CLONES
void scale_row(const float* x, float factor, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i++) to[i] = x[i] * factor;
}

AQ_VECTOR_CLONES
void multiply_row(float* x, const float* by, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] *= by[i];
}

AQ_VECTOR_CLONES
void add_scaled_row(float* sum, const float* x, float factor, int64_t n) {
  for (int64_t i = 0; i < n; i++) sum[i] += x[i] * factor;
}

/// Rotates n pairs (a[i], b[i]), which lie `step` apart.
AQ_VECTOR_CLONES
void rotate_pairs(float* a, float* b, const float* cos, const float* sin, int64_t n, int64_t step) {
  for (int64_t i = 0; i < n; i++) {
    const float x = a[i * step], y = b[i * step];
    a[i * step] = x * cos[i] - y * sin[i];
    b[i * step] = y * cos[i] + x * sin[i];
  }
}

AQ_VECTOR_CLONES
void silu_row(float* x, int64_t n) {
  constexpr float kLog2E = std::numbers::log2e_v<float>;
  for (int64_t i = 0; i < n; i++) {
    const float e = power_of_two<6>(-std::abs(x[i]) * kLog2E);
    x[i] *= (x[i] < 0 ? e : 1.0F) / (1 + e);
  }
}

/// Rows of float32 or bfloat16 numbers that are read and written as float32.
class FloatRows {
 public:
  FloatRows(const at::Tensor& t, int64_t size)
      : size_(size), rounded_(t.scalar_type() == at::kBFloat16), data_(t.data_ptr()) {
    TORCH_INTERNAL_ASSERT(t.is_contiguous() && (rounded_ || t.scalar_type() == at::kFloat));
  }

  bool rounded() const { return rounded_; }

  /// The row, as float32: converted into `buffer` [size], or in place if it is float32 already.
  float* read(int64_t row, float* buffer) const {
    if (!rounded_) return static_cast<float*>(data_) + row * size_;
    widen_row(static_cast<const uint16_t*>(data_) + row * size_, size_, buffer);
    return buffer;
  }
  /// Stores values that were changed where read() or place() pointed to.
  void write(int64_t row, const float* values) const {
    if (rounded_) narrow_row(values, size_, static_cast<uint16_t*>(data_) + row * size_);
  }
  /// Like read(), for a row that is only written.
  float* place(int64_t row, float* buffer) const {
    return rounded_ ? buffer : static_cast<float*>(data_) + row * size_;
  }

 private:
  int64_t size_;
  bool rounded_;
  void* data_;
};

/// Calls body(begin, end) for parts of `rows` rows of `size` numbers each, in parallel.
template <typename Body>
void for_rows(int64_t rows, int64_t size, const Body& body) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)), body);
}

std::vector<float> buffer_of(int64_t size) {
  return std::vector<float>(static_cast<std::size_t>(size));
}

cuda::Float type_of(const at::Tensor& t) {
  TORCH_INTERNAL_ASSERT(t.is_contiguous());
  return t.scalar_type() == at::kBFloat16 ? cuda::Float::kBFloat16 : cuda::Float::kFloat32;
}

}  // namespace

bool can_fuse(const at::Tensor& x) {
  return !x.requires_grad() && (x.is_cpu() || x.is_cuda()) &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

at::Tensor fused_rms_norm(const at::Tensor& x, const at::Tensor& weight, float eps) {
  const int64_t size = weight.size(0), rows = x.numel() / std::max<int64_t>(1, size);
  const at::Tensor input = x.contiguous();
  at::Tensor out = at::empty(x.sizes(), weight.options());
  if (x.is_cuda()) {
    enqueue(&GpuKernels::rms_norm, out,
            cuda::RmsNormArgs{input.data_ptr(), weight.data_ptr(), out.data_ptr(), type_of(input),
                              type_of(out), rows, size, eps});
    return out;
  }
  const at::Tensor factors = weight.to(at::kFloat);
  const FloatRows from(input, size), to(out, size);
  for_rows(rows, size, [&](int64_t begin, int64_t end) {
    std::vector<float> wide = buffer_of(size), result = buffer_of(size);
    for (int64_t r = begin; r < end; r++) {
      const float* in = from.read(r, wide.data());
      const float mean = sum_of_squares(in, size) / static_cast<float>(size);
      float* y = to.place(r, result.data());
      scale_row(in, 1 / std::sqrt(mean + eps), size, y);
      if (to.rounded()) round_row(y, size);
      multiply_row(y, factors.data_ptr<float>(), size);
      to.write(r, y);
    }
  });
  return out;
}

void fused_rotate(at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved) {
  const int64_t tokens = x.size(1), heads = x.size(2), size = x.size(3), half = cos.size(1);
  if (x.is_cuda())
    return enqueue(&GpuKernels::rotate, x,
                   cuda::RotateArgs{x.data_ptr(), cos.data_ptr(), sin.data_ptr(), type_of(x),
                                    x.size(0), tokens, heads, size, half, interleaved});
  const FloatRows rows(x, size), cosines(cos, half), sines(sin, half);
  for_rows(x.size(0) * tokens, heads * size, [&](int64_t begin, int64_t end) {
    std::vector<float> c_buffer = buffer_of(half), s_buffer = buffer_of(half),
                       buffer = buffer_of(size);
    for (int64_t t = begin; t < end; t++) {
      const float* c = cosines.read(t % tokens, c_buffer.data());
      const float* s = sines.read(t % tokens, s_buffer.data());
      for (int64_t row = t * heads; row < (t + 1) * heads; row++) {
        float* y = rows.read(row, buffer.data());
        if (interleaved)
          rotate_pairs(y, y + 1, c, s, half, 2);
        else
          rotate_pairs(y, y + half, c, s, half, 1);
        rows.write(row, y);
      }
    }
  });
}

void fused_silu_times(at::Tensor& gate, const at::Tensor& up) {
  const int64_t size = gate.size(-1), rows = gate.numel() / std::max<int64_t>(1, size);
  if (gate.is_cuda())
    return enqueue(&GpuKernels::silu_times, gate,
                   cuda::SiluTimesArgs{gate.data_ptr(), up.data_ptr(), type_of(gate), rows, size});
  const FloatRows gates(gate, size), ups(up, size);
  for_rows(rows, size, [&](int64_t begin, int64_t end) {
    std::vector<float> gate_buffer = buffer_of(size), up_buffer = buffer_of(size);
    for (int64_t r = begin; r < end; r++) {
      float* y = gates.read(r, gate_buffer.data());
      silu_row(y, size);
      if (gates.rounded()) round_row(y, size);
      multiply_row(y, ups.read(r, up_buffer.data()), size);
      gates.write(r, y);
    }
  });
}

void fused_add_rows(at::Tensor& sums, const at::Tensor& rows, const at::Tensor& weights,
                    const at::Tensor& y) {
  const int64_t size = y.size(1);
  if (y.is_cuda())
    return enqueue(
        &GpuKernels::add_rows, y,
        cuda::AddRowsArgs{sums.data_ptr<float>(), rows.data_ptr<int64_t>(),
                          weights.data_ptr<float>(), y.data_ptr(), type_of(y), y.size(0), size});
  const FloatRows from(y, size);
  const int64_t* places = rows.data_ptr<int64_t>();
  const float* factors = weights.data_ptr<float>();
  float* out = sums.data_ptr<float>();
  for_rows(y.size(0), size, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer = buffer_of(size);
    for (int64_t r = begin; r < end; r++)
      add_scaled_row(out + places[r] * size, from.read(r, buffer.data()), factors[r], size);
  });
}

}  // namespace aqhost
