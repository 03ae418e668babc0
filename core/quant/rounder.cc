#include "quant/rounder.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <aq/sdk/two_level.hpp>
#include <cmath>
#include <limits>

#include "quant/tile.h"

namespace aqhost {
namespace {

constexpr std::size_t kLanes = 48;        // search factors that are tried together
constexpr std::size_t kInRegisters = 16;  // of these, those whose sums are in registers at once
constexpr uint32_t kFew = 8;              // with so few search factors, lanes would be idle

template <typename Element>
constexpr bool is_kernel_element = !std::is_same_v<std::remove_cvref_t<Element>, std::monostate>;

}  // namespace

/// A few parameters that are tried together. Their errors are computed exactly, in float64.
struct Rounder::Finalists {
  static constexpr std::size_t kLanes = 8;
  alignas(64) float step[kLanes];
  alignas(64) float zero[kLanes];
  alignas(64) double error[kLanes] = {};

  /// Takes params[begin] and those after it; lanes without a parameter repeat the last one.
  Finalists(const std::vector<aq::GroupParams>& params, std::size_t begin, float global) {
    for (std::size_t k = 0; k < kLanes; k++) {
      const aq::GroupParams& p = params[std::min(begin + k, params.size() - 1)];
      step[k] = p.scale / global;
      zero[k] = p.zero;
    }
  }
};

namespace {

using Finalists = Rounder::Finalists;

/// Search factors that are tried together. Their errors are float32 approximations.
struct Candidates {
  alignas(64) float step[kLanes];
  alignas(64) float inverse[kLanes];
  alignas(64) float zero[kLanes];
  alignas(64) float error[kLanes];
};

/// Computes an approximation of every candidate's error over one group; see
/// Rounder::keep_contenders().
template <typename Element>
[[gnu::always_inline]] inline void guess_errors(const Element& element, const float* weights,
                                                const float* importance, int64_t n, Candidates& c) {
  for (std::size_t begin = 0; begin < kLanes; begin += kInRegisters) {
    float errors[kInRegisters] = {};
    for (int64_t i = 0; i < n; i++) {
      const float w = weights[i], h = importance[i];
      for (std::size_t lane = 0; lane < kInRegisters; lane++) {
        const std::size_t k = begin + lane;
        const float d = w - element(w * c.inverse[k], c.zero[k]).value * c.step[k];
        errors[lane] += h * (d * d);
      }
    }
    std::copy_n(errors, kInRegisters, c.error + begin);
  }
}

/// Adds the errors of every finalist over n weights; each lane adds its columns in order.
template <typename Element>
[[gnu::always_inline]] inline void errors_of_lanes(const Element& element, const float* weights,
                                                   const float* importance, int64_t n,
                                                   Finalists& c) {
  for (int64_t i = 0; i < n; i++) {
    const float w = weights[i];
    const double h = importance[i];
#pragma GCC unroll 1  // GCC vectorizes this loop only while it is a loop
    for (std::size_t k = 0; k < Finalists::kLanes; k++) {
      const float stored = element(w / c.step[k], c.zero[k]).value * c.step[k];
      c.error[k] += aq::weighted_error(w, stored, h);
    }
  }
}

/// Computes the weighted squared error of every weight in one group.
template <typename Element>
[[gnu::always_inline]] inline void errors_of_weights(const Element& element, const float* weights,
                                                     const float* importance, int64_t n, float step,
                                                     float zero, double* errors) {
  for (int64_t i = 0; i < n; i++) {
    const float stored = element(weights[i] / step, zero).value * step;
    errors[i] = aq::weighted_error(weights[i], stored, importance[i]);
  }
}

template <typename Element>
[[gnu::always_inline]] inline void round_weights(const Element& element, int64_t n,
                                                 const float* weights, const float* step,
                                                 const float* zero, uint8_t* codes, float* values) {
  for (int64_t i = 0; i < n; i++) {
    const aq::Rounded rounded = element(weights[i] / step[i], zero[i]);
    codes[i] = static_cast<uint8_t>(rounded.code);
    values[i] = rounded.value * step[i];
  }
}

// The attribute target_clones cannot be applied to templates.
#define AQ_KERNELS(Element)                                                                   \
  AQ_VECTOR_CLONES                                                                            \
  void guess_lanes(const Element& element, const float* weights, const float* importance,     \
                   int64_t n, Candidates& candidates) {                                       \
    guess_errors(element, weights, importance, n, candidates);                                \
  }                                                                                           \
  AQ_VECTOR_CLONES                                                                            \
  void lane_errors(const Element& element, const float* weights, const float* importance,     \
                   int64_t n, Finalists& finalists) {                                         \
    errors_of_lanes(element, weights, importance, n, finalists);                              \
  }                                                                                           \
  AQ_VECTOR_CLONES                                                                            \
  void weight_errors(const Element& element, const float* weights, const float* importance,   \
                     int64_t n, float step, float zero, double* errors) {                     \
    errors_of_weights(element, weights, importance, n, step, zero, errors);                   \
  }                                                                                           \
  AQ_VECTOR_CLONES                                                                            \
  void round_each(const Element& element, int64_t n, const float* weights, const float* step, \
                  const float* zero, uint8_t* codes, float* values) {                         \
    round_weights(element, n, weights, step, zero, codes, values);                            \
  }
AQ_KERNELS(IntElement)
AQ_KERNELS(FloatElement)
AQ_KERNELS(TableElement)
#undef AQ_KERNELS

/// The same for integers whose groups have minima.
AQ_VECTOR_CLONES
void round_above_minima(const IntElement& element, int64_t n, const float* weights,
                        const float* step, const float* minimum, uint8_t* codes, float* values) {
  for (int64_t i = 0; i < n; i++) {
    const aq::Rounded rounded = element((weights[i] + minimum[i]) / step[i], 0);
    codes[i] = static_cast<uint8_t>(rounded.code);
    values[i] = rounded.value * step[i] - minimum[i];
  }
}

/// The factor, a power of 2, by which a normal x > 0 becomes a number in [1, 4).
float scale_to_one(float x) {
  const uint32_t exponent = std::bit_cast<uint32_t>(x) >> 23;
  return std::bit_cast<float>(std::max(254 - std::clamp(exponent, 1u, 254u), 1u) << 23);
}

}  // namespace

Rounder::Rounder(const aq_format_desc& desc)
    : desc_(desc), grid_(desc_), element_(make_element(desc_, grid_)) {}

float Rounder::fit_global(const float* weights, int64_t n) const {
  return desc_.tensor_params > 0 ? aq::fit_global(desc_, weights, n) : 1.0f;
}

aq::GroupParams Rounder::fit(const float* weights, int64_t n, const float* importance, float global,
                             Scratch& scratch) const {
  if (desc_.n_search < 2 || std::holds_alternative<std::monostate>(element_))
    return aq::fit_group(desc_, grid_, weights, n, importance, global);
  if (importance == nullptr) {
    scratch.ones.resize(std::max(scratch.ones.size(), static_cast<std::size_t>(n)), 1.0F);
    importance = scratch.ones.data();
  }
  const aq::Extent extent(weights, n);
  return desc_.n_search <= kFew ? fit_few(weights, n, importance, extent, global, scratch)
                                : fit_many(weights, n, importance, extent, global, scratch);
}

/// Tries one candidate after another, each on all weights at once.
aq::GroupParams Rounder::fit_few(const float* weights, int64_t n, const float* importance,
                                 const aq::Extent& extent, float global, Scratch& scratch) const {
  std::vector<double>& errors = scratch.errors;
  errors.resize(static_cast<std::size_t>(n));
  aq::GroupParams best;
  double least_error = std::numeric_limits<double>::infinity();
  for (uint32_t k = 0; k < desc_.n_search; k++) {
    const aq::GroupParams params = aq::params_for(desc_, extent, global, desc_.search[k]);
    std::visit(
        [&](const auto& element) {
          if constexpr (is_kernel_element<decltype(element)>)
            weight_errors(element, weights, importance, n, params.scale / global, params.zero,
                          errors.data());
        },
        element_);
    double error = 0;
    for (const double e : errors) error += e;
    if (!(error < least_error)) continue;
    least_error = error;
    best = params;
  }
  return best;
}

/// Tries many candidates at once on one weight after another: a float32 pre-screen of all, then
/// exact float64 errors for those that remain.
aq::GroupParams Rounder::fit_many(const float* weights, int64_t n, const float* importance,
                                  const aq::Extent& extent, float global, Scratch& scratch) const {
  std::vector<aq::GroupParams>& params = scratch.params;
  params.clear();
  for (uint32_t k = 0; k < desc_.n_search; k++)
    params.push_back(aq::params_for(desc_, extent, global, desc_.search[k]));
  keep_contenders(weights, n, importance, extent, global, scratch);
  if (params.size() == 1) return params.front();
  return first_best(weights, 1, n, importance, global, params);
}

/// Adds each finalist's error over n weights to finalists.error.
void Rounder::add_errors(const float* weights, int64_t n, const float* importance,
                         Finalists& finalists) const {
  std::visit(
      [&](const auto& element) {
        if constexpr (is_kernel_element<decltype(element)>) {
          lane_errors(element, weights, importance, n, finalists);
          return;
        }
        for (int64_t i = 0; i < n; i++)
          for (std::size_t k = 0; k < Finalists::kLanes; k++) {
            const float step = finalists.step[k], zero = finalists.zero[k];
            const float stored = grid_.round(weights[i] / step, zero).value * step;
            finalists.error[k] += aq::weighted_error(weights[i], stored, importance[i]);
          }
      },
      element_);
}

/// The first of `params` with the minimum error over weights [rows, n], each summed in order.
aq::GroupParams Rounder::first_best(const float* weights, int64_t rows, int64_t n,
                                    const float* importance, float global,
                                    const std::vector<aq::GroupParams>& params) const {
  aq::GroupParams best;
  double least_error = std::numeric_limits<double>::infinity();
  for (std::size_t begin = 0; begin < params.size(); begin += Finalists::kLanes) {
    Finalists finalists(params, begin, global);
    for (int64_t r = 0; r < rows; r++) add_errors(weights + r * n, n, importance, finalists);
    for (std::size_t k = 0; k < std::min(Finalists::kLanes, params.size() - begin); k++) {
      if (!(finalists.error[k] < least_error)) continue;
      least_error = finalists.error[k];
      best = params[begin + k];
    }
  }
  return best;
}

/// The error of each of `params` over weights [rows, n], summed row by row on all threads.
std::vector<double> Rounder::errors_of_rows(const float* weights, int64_t rows, int64_t n,
                                            const float* importance,
                                            const std::vector<aq::GroupParams>& params) const {
  const std::size_t count = params.size();
  std::vector<double> of_rows(static_cast<std::size_t>(rows) * count), errors(count);
  at::parallel_for(0, rows, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++)
      for (std::size_t begin = 0; begin < count; begin += Finalists::kLanes) {
        Finalists finalists(params, begin, 1.0F);
        add_errors(weights + r * n, n, importance, finalists);
        std::copy_n(
            finalists.error, std::min(Finalists::kLanes, count - begin),
            of_rows.begin() + r * static_cast<int64_t>(count) + static_cast<std::ptrdiff_t>(begin));
      }
  });
  for (std::size_t i = 0; i < of_rows.size(); i++) errors[i % count] += of_rows[i];
  return errors;
}

aq::GroupParams Rounder::fit_matrix(const float* weights, int64_t rows, int64_t n,
                                    const float* importance) const {
  const aq::Extent extent(weights, rows * n);
  if (desc_.n_search == 0) return aq::params_for(desc_, extent, 1.0F, 1.0F);
  std::vector<float> ones;
  if (importance == nullptr) {
    ones.assign(static_cast<std::size_t>(n), 1.0F);
    importance = ones.data();
  }
  std::vector<aq::GroupParams> params;
  for (uint32_t k = 0; k < desc_.n_search; k++)
    params.push_back(aq::params_for(desc_, extent, 1.0F, desc_.search[k]));
  // Two sums of the same N terms in different orders differ by at most 2 N 2^-53, relative to
  // either. A larger difference decides; the remaining candidates are summed again in the order of
  // the contract.
  const std::vector<double> errors = errors_of_rows(weights, rows, n, importance, params);
  const double least = *std::min_element(errors.begin(), errors.end());
  const double most = least * (1 + static_cast<double>(rows * n) * 0x1p-50);
  std::vector<aq::GroupParams> close;
  for (std::size_t k = 0; k < params.size(); k++) {
    if (errors[k] > most) continue;
    if (!close.empty() && close.back().scale == params[k].scale) continue;
    close.push_back(params[k]);
  }
  return close.size() == 1 && std::isfinite(least)
             ? close.front()
             : first_best(weights, rows, n, importance, 1.0F, close);
}

/// Removes from scratch.params those whose error cannot be the minimum. Errors are summed in
/// float32, from products with 1 / step, with weights and importances scaled to about 1. Every
/// difference d is off by less than 2^-20 |w|. The root of the error is a norm of d, so it is off
/// by less than 2^-20 of the same norm of w, and the sum by n roundings.
void Rounder::keep_contenders(const float* weights, int64_t n, const float* importance,
                              const aq::Extent& extent, float global, Scratch& scratch) const {
  constexpr float kTiny = 1e-30F;  // below this, float32 squares underflow
  std::vector<aq::GroupParams>& params = scratch.params;
  const std::size_t count = params.size();
  const float most_important = *std::max_element(importance, importance + n);
  if (!(most_important > 0)) return;
  std::vector<float>&w = scratch.weights, &h = scratch.importance, &errors = scratch.guesses;
  w.resize(static_cast<std::size_t>(n));
  h.resize(static_cast<std::size_t>(n));
  const float unit = scale_to_one(extent.absmax());
  std::transform(weights, weights + n, w.begin(), [=](float x) { return x * unit; });
  std::transform(importance, importance + n, h.begin(),
                 [unit = scale_to_one(most_important)](float x) { return x * unit; });
  errors.resize(count + kLanes);  // the errors, followed by those of rounding to 0: the norm of w
  Candidates candidates{};
  for (std::size_t begin = 0; begin <= count; begin += kLanes) {
    for (std::size_t k = 0; k < kLanes; k++) {
      const bool real = begin + k < count;
      candidates.step[k] = real ? params[begin + k].scale / global * unit : 0;
      candidates.inverse[k] = real ? 1 / candidates.step[k] : 0;
      candidates.zero[k] = real ? params[begin + k].zero : 0;
    }
    std::visit(
        [&](const auto& element) {
          if constexpr (is_kernel_element<decltype(element)>)
            guess_lanes(element, w.data(), h.data(), n, candidates);
        },
        element_);
    std::copy_n(candidates.error, std::min(kLanes, errors.size() - begin),
                errors.begin() + static_cast<std::ptrdiff_t>(begin));
  }
  const float least = *std::min_element(errors.begin(), errors.end() - kLanes);
  if (!(least > kTiny)) return;
  const double rounding = 1 + static_cast<double>(n) * 0x1p-22;
  const double root = rounding * (std::sqrt(static_cast<double>(least)) +
                                  0x1p-19 * std::sqrt(static_cast<double>(errors[count])));
  const double most = root * root * rounding;
  std::size_t kept = 0;
  for (std::size_t k = 0; k < count; k++)
    if (!(static_cast<double>(errors[k]) > most)) params[kept++] = params[k];
  params.resize(kept);
}

void Rounder::fit_two_level(const float* weights, int64_t n, const float* importance,
                            float* params) const {
  std::vector<aq::TwoLevelParams> fitted(
      static_cast<std::size_t>((n + desc_.group_size - 1) / desc_.group_size));
  aq::TwoLevelFit(desc_).fit(weights, n, importance, fitted.data());
  for (const auto& [scale, minimum, d, dmin] : fitted)
    for (const float value : {scale, minimum, d, dmin}) *params++ = value;
}

void Rounder::refit_two_level(const float* weights, int64_t n, const float* importance,
                              float* params) const {
  aq::TwoLevelParams fitted{params[0], params[1], params[2], params[3]};
  aq::TwoLevelFit(desc_).refit(weights, n, importance, fitted);
  params[0] = fitted.scale;
  params[1] = fitted.minimum;
}

void Rounder::round(int64_t n, const float* weights, const float* step, const float* zero,
                    uint8_t* codes, float* values) const {
  if (aq::two_level(desc_))  // without minima, these are 0
    return round_above_minima(std::get<IntElement>(element_), n, weights, step, zero, codes,
                              values);
  std::visit(
      [&](const auto& element) {
        if constexpr (is_kernel_element<decltype(element)>) {
          round_each(element, n, weights, step, zero, codes, values);
          return;
        }
        for (int64_t i = 0; i < n; i++) {
          const aq::Rounded rounded = grid_.round(weights[i] / step[i], zero[i]);
          codes[i] = static_cast<uint8_t>(rounded.code);
          values[i] = rounded.value * step[i];
        }
      },
      element_);
}

void Rounder::values(int64_t n, const uint8_t* codes, const float* step, const float* zero,
                     float* values) const {
  for (int64_t i = 0; i < n; i++) values[i] = grid_.weight_of(codes[i], step[i], zero[i]);
}

float Rounder::round_scale(float scale) const { return aq::round_scale(desc_, scale); }

}  // namespace aqhost
