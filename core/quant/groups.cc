#include "quant/groups.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "quant/gpu.h"
#include "quant/rounder.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr int64_t kRowGrain = 4;  // minimum number of rows per thread

std::span<const float> row_span(const at::Tensor& t, int64_t e) {
  if (!t.defined()) return {};
  const auto n = static_cast<std::size_t>(t.size(1));
  return {t.data_ptr<float>() + e * t.size(1), n};
}

/// Calls body(e, group, first column, number of columns) for every group of every matrix, in
/// parallel.
template <typename Body>
void each_group(const FormatDesc& desc, const at::Tensor& weights, Body body) {
  const int64_t in = weights.size(2), groups = desc.groups(in);
  const int64_t width = desc.width(in);
  at::parallel_for(0, weights.size(0) * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t e = i / groups, g = i % groups;
      body(e, g, g * width, std::min(width, in - g * width));
    }
  });
}

/// aq::fit_global() for every matrix of [E, rows, in], on the device of `weights`.
at::Tensor fit_globals(const FormatDesc& desc, const at::Tensor& weights) {
  const at::Tensor most = weights.abs().amax({1, 2});
  const at::Tensor fitted =
      at::clamp_max(desc.global_max / most, std::numeric_limits<float>::max());
  return at::where(most == 0, at::ones_like(most), fitted).unsqueeze(1);
}

/// Whether errors of a format count by the sizes of the weights where nothing is known of their
/// inputs. With more bits, hardly any weight is given up, and the scales of super-groups have a
/// search of their own.
bool counts_by_size(const FormatDesc& desc) { return desc.element_bits <= 4 && !desc.two_level(); }

/// Writes to out [n] how much an error in each of the n weights of a group counts: w^2 plus the
/// mean of w^2, in units of the largest w^2. The unweighted squared error gives large weights up
/// too easily (tools/bench/ACCURACY.md has the measurements).
void weigh_by_size(const float* weights, int64_t n, float* out) {
  double most = 0;
  for (int64_t i = 0; i < n; i++) most = std::max(most, std::fabs(double{weights[i]}));
  if (most == 0) most = 1;
  const auto square = [&](int64_t i) {
    const double relative = double{weights[i]} / most;
    return relative * relative;
  };
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += square(i);
  const double mean = sum / static_cast<double>(n);
  for (int64_t i = 0; i < n; i++) out[i] = static_cast<float>(square(i) + mean);
}

at::Tensor columns(const at::Tensor& matrix, int64_t begin, int64_t count) {
  return matrix.narrow(1, begin, count).contiguous();
}

}  // namespace

at::Tensor fit_tensors(const Format& format, const at::Tensor& weights,
                       const at::Tensor& importance) {
  const auto n = static_cast<int64_t>(format.desc().tensor_params);
  at::Tensor params = at::empty({weights.size(0), n}, weights.options());
  if (weights.is_cuda()) return n > 0 ? fit_globals(format.desc(), weights) : params;
  for (int64_t e = 0; n > 0 && e < weights.size(0); e++) {
    const auto fitted = format.fit_tensor(span_of<float>(weights[e]), weights.size(1),
                                          weights.size(2), row_span(importance, e));
    std::copy(fitted.begin(), fitted.end(), params.data_ptr<float>() + e * n);
  }
  return params;
}

at::Tensor fit_groups(const Format& format, const at::Tensor& weights, const at::Tensor& importance,
                      const at::Tensor& tensor_params) {
  const FormatDesc& desc = format.desc();
  if (weights.is_cuda()) return fit_groups_on_gpu(desc, weights, importance, tensor_params);
  const int64_t rows = weights.size(1), in = weights.size(2), groups = desc.groups(in);
  const auto n_params = static_cast<int64_t>(desc.group_params);
  at::Tensor params = at::empty({weights.size(0), rows, groups, n_params}, at::kFloat);
  float* out = params.data_ptr<float>();
  if (!desc.host_rounds()) {
    each_group(desc, weights, [&](int64_t e, int64_t g, int64_t begin, int64_t n) {
      const at::Tensor part = columns(weights[e], begin, n);
      const at::Tensor fitted = at::empty({rows, n_params}, at::kFloat);
      auto h = row_span(importance, e);
      if (!h.empty()) h = h.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n));
      format.fit(span_of<float>(part), rows, n, h, row_span(tensor_params, e),
                 span_of<float>(fitted));
      params[e].select(1, g).copy_(fitted);
    });
    return params;
  }
  const Rounder rounder(desc);
  const float* w = weights.data_ptr<float>();
  if (desc.group_size == 0) {
    for (int64_t e = 0; e < weights.size(0); e++) {
      const auto h = row_span(importance, e);
      params[e].fill_(
          rounder.fit_matrix(w + e * rows * in, rows, in, h.empty() ? nullptr : h.data()).scale);
    }
    return params;
  }
  const int64_t width = desc.width(in), together = desc.two_level() ? desc.super_size : width;
  const bool by_size = !importance.defined() && counts_by_size(desc);
  at::parallel_for(0, weights.size(0) * rows, kRowGrain, [&](int64_t begin, int64_t end) {
    Rounder::Scratch scratch;
    std::vector<float> sizes(static_cast<std::size_t>(by_size ? width : 0));
    for (int64_t r = begin; r < end; r++) {
      const auto h = row_span(importance, r / rows), whole = row_span(tensor_params, r / rows);
      const float global = whole.empty() ? 1.0f : whole[0];
      for (int64_t c = 0; c < in; c += together) {
        const int64_t n = std::min(together, in - c);
        const float* mine = w + r * in + c;
        const float* counts = h.empty() ? nullptr : h.data() + c;
        float* p = out + (r * groups + c / width) * n_params;
        if (desc.two_level()) {
          rounder.fit_two_level(mine, n, counts, p);
          continue;
        }
        if (by_size) {
          weigh_by_size(mine, n, sizes.data());
          counts = sizes.data();
        }
        const aq::GroupParams fitted = rounder.fit(mine, n, counts, global, scratch);
        p[0] = fitted.scale;
        if (n_params > 1) p[1] = fitted.zero;
      }
    }
  });
  return params;
}

namespace {

/// round_groups() for a format that the host rounds.
void round_rows(const FormatDesc& desc, const at::Tensor& weights, QuantizedBatch& batch) {
  const Rounder rounder(desc);
  const int64_t rows = weights.size(1), in = weights.size(2), width = desc.width(in);
  const int64_t groups = desc.groups(in), n_params = desc.group_params;
  at::parallel_for(0, weights.size(0) * rows, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> step(static_cast<std::size_t>(in)), zero(static_cast<std::size_t>(in));
    for (int64_t r = begin; r < end; r++) {
      const auto whole = row_span(batch.tensor_params, r / rows);
      const float* p = batch.params.data_ptr<float>() + r * groups * n_params;
      for (int64_t g = 0; g < groups; g++) {
        const float* mine = p + g * n_params;
        const int64_t c = g * width, n = std::min(width, in - c);
        std::fill_n(step.begin() + c, n, mine[0] / (whole.empty() ? 1.0f : whole[0]));
        std::fill_n(zero.begin() + c, n, n_params > 1 ? mine[1] : 0.0f);
      }
      rounder.round(in, weights.data_ptr<float>() + r * in, step.data(), zero.data(),
                    batch.codes.data_ptr<uint8_t>() + r * in,
                    batch.values.data_ptr<float>() + r * in);
    }
  });
}

}  // namespace

void round_groups(const Format& format, const at::Tensor& weights, QuantizedBatch& batch) {
  const FormatDesc& desc = format.desc();
  if (weights.is_cuda()) return round_groups_on_gpu(desc, weights, batch);
  if (desc.host_rounds()) return round_rows(desc, weights, batch);
  const int64_t rows = weights.size(1), dim = desc.vector_dim;
  const auto code_bytes = static_cast<std::size_t>(desc.code_bytes());
  each_group(desc, weights, [&](int64_t e, int64_t g, int64_t begin, int64_t n) {
    const at::Tensor part = columns(weights[e], begin, n);
    const at::Tensor params = batch.params[e].select(1, g).contiguous();
    const at::Tensor codes = at::empty({rows, n / dim}, batch.codes.options());
    const at::Tensor values = at::empty({rows, n}, at::kFloat);
    const std::span code_span{static_cast<std::byte*>(codes.data_ptr()),
                              static_cast<std::size_t>(codes.numel()) * code_bytes};
    format.quantize(span_of<float>(part), rows, n, span_of<float>(params),
                    row_span(batch.tensor_params, e), code_span, span_of<float>(values));
    batch.codes[e].narrow(1, begin / dim, n / dim).copy_(codes);
    batch.values[e].narrow(1, begin, n).copy_(values);
  });
}

}  // namespace aqhost
