#include "quant/rounder.h"

#include <algorithm>
#include <limits>

#include "quant/tile.h"

namespace aqhost {
namespace {

constexpr std::size_t kLanes = 48;  // search factors handled at once
constexpr uint32_t kFew = 8;        // search factors for which lanes would lie idle

aq_format_desc raw_desc(const FormatDesc& d) {
  aq_format_desc raw{};
  raw.struct_size = sizeof raw;
  raw.element_kind = d.element_kind;
  raw.element_bits = d.element_bits;
  raw.int_min = d.int_min;
  raw.int_max = d.int_max;
  raw.values = d.values.data();
  raw.vector_dim = d.vector_dim;
  raw.fit_rule = d.fit_rule;
  raw.scale_divisor = d.scale_divisor;
  raw.scale_kind = d.scale_kind;
  raw.scale_round = d.scale_round;
  raw.scale_mantissa_bits = d.scale_mantissa_bits;
  raw.global_max = d.global_max;
  raw.group_size = d.group_size;
  raw.group_params = d.group_params;
  raw.tensor_params = d.tensor_params;
  raw.search = d.search.data();
  raw.n_search = static_cast<uint32_t>(d.search.size());
  return raw;
}

template <typename Element>
constexpr bool is_kernel_element = !std::is_same_v<std::remove_cvref_t<Element>, std::monostate>;

struct Candidates {
  alignas(64) float step[kLanes];
  alignas(64) float zero[kLanes];
  alignas(64) double error[kLanes];
};

// Each element kind has operator()(t, zero): code and value of Grid, without a branch.

/// The error of every candidate over one group; each lane sums its columns in order.
template <typename Element>
[[gnu::always_inline]] inline void errors_of_lanes(const Element& element, const float* weights,
                                                   const double* importance, int64_t n,
                                                   Candidates& c) {
  for (std::size_t k = 0; k < kLanes; k++) c.error[k] = 0;
  for (int64_t i = 0; i < n; i++) {
    const float w = weights[i];
    const double h = importance[i];
    for (std::size_t k = 0; k < kLanes; k++) {
      const double d = w - element(w / c.step[k], c.zero[k]).value * c.step[k];
      c.error[k] += h * (d * d);
    }
  }
}

/// The weighted squared error of every weight of one group.
template <typename Element>
[[gnu::always_inline]] inline void errors_of_weights(const Element& element, const float* weights,
                                                     const double* importance, int64_t n,
                                                     float step, float zero, double* errors) {
  for (int64_t i = 0; i < n; i++) {
    const double d = weights[i] - element(weights[i] / step, zero).value * step;
    errors[i] = importance[i] * (d * d);
  }
}

template <typename Element>
[[gnu::always_inline]] inline void round_weights(const Element& element, int64_t n,
                                                 const float* weights, const float* step,
                                                 const float* zero, uint8_t* codes, float* values) {
  for (int64_t i = 0; i < n; i++) {
    const ElementCode rounded = element(weights[i] / step[i], zero[i]);
    codes[i] = static_cast<uint8_t>(rounded.code);
    values[i] = rounded.value * step[i];
  }
}

// Cloned functions cannot be templates.
#define AQ_KERNELS(Element)                                                                   \
  AQ_VECTOR_CLONES                                                                            \
  void lane_errors(const Element& element, const float* weights, const double* importance,    \
                   int64_t n, Candidates& candidates) {                                       \
    errors_of_lanes(element, weights, importance, n, candidates);                             \
  }                                                                                           \
  AQ_VECTOR_CLONES                                                                            \
  void weight_errors(const Element& element, const float* weights, const double* importance,  \
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

}  // namespace

Rounder::Rounder(const FormatDesc& desc)
    : desc_(raw_desc(desc)), grid_(desc_), element_(make_element(desc_, grid_)) {}

float Rounder::fit_global(const float* weights, int64_t n) const {
  return desc_.tensor_params > 0 ? aq::fit_global(desc_, weights, n) : 1.0f;
}

aq::GroupParams Rounder::fit(const float* weights, int64_t n, const float* importance,
                             float global) const {
  if (desc_.n_search < 2 || std::holds_alternative<std::monostate>(element_))
    return aq::fit_group(desc_, grid_, weights, n, importance, global);
  thread_local std::vector<double> h;
  h.assign(static_cast<std::size_t>(n), 1.0);
  if (importance != nullptr) std::copy_n(importance, n, h.begin());
  const aq::Extent extent(weights, n);
  return desc_.n_search <= kFew ? fit_few(weights, n, h.data(), extent, global)
                                : fit_many(weights, n, h.data(), extent, global);
}

/// One candidate after another, all weights at once.
aq::GroupParams Rounder::fit_few(const float* weights, int64_t n, const double* importance,
                                 const aq::Extent& extent, float global) const {
  thread_local std::vector<double> errors;
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

/// One weight after another, many candidates at once.
aq::GroupParams Rounder::fit_many(const float* weights, int64_t n, const double* importance,
                                  const aq::Extent& extent, float global) const {
  aq::GroupParams best, params[kLanes];
  double least_error = std::numeric_limits<double>::infinity();
  Candidates candidates;
  for (uint32_t begin = 0; begin < desc_.n_search; begin += kLanes) {
    const std::size_t count = std::min<std::size_t>(kLanes, desc_.n_search - begin);
    for (std::size_t k = 0; k < kLanes; k++) {  // lanes without a factor repeat the last
      const std::size_t factor = begin + std::min(k, count - 1);
      params[k] = aq::params_for(desc_, extent, global, desc_.search[factor]);
      candidates.step[k] = params[k].scale / global;
      candidates.zero[k] = params[k].zero;
    }
    std::visit(
        [&](const auto& element) {
          if constexpr (is_kernel_element<decltype(element)>)
            lane_errors(element, weights, importance, n, candidates);
        },
        element_);
    for (std::size_t k = 0; k < count; k++) {
      if (!(candidates.error[k] < least_error)) continue;
      least_error = candidates.error[k];
      best = params[k];
    }
  }
  return best;
}

void Rounder::round(int64_t n, const float* weights, const float* step, const float* zero,
                    uint8_t* codes, float* values) const {
  std::visit(
      [&](const auto& element) {
        if constexpr (is_kernel_element<decltype(element)>) {
          round_each(element, n, weights, step, zero, codes, values);
          return;
        }
        for (int64_t i = 0; i < n; i++) {
          const uint32_t code = grid_.code(weights[i] / step[i], zero[i]);
          codes[i] = static_cast<uint8_t>(code);
          values[i] = grid_.value(code, zero[i]) * step[i];
        }
      },
      element_);
}

void Rounder::values(int64_t n, const uint8_t* codes, const float* step, const float* zero,
                     float* values) const {
  for (int64_t i = 0; i < n; i++) values[i] = grid_.value(codes[i], zero[i]) * step[i];
}

float Rounder::round_scale(float scale) const { return aq::round_scale(desc_, scale); }

}  // namespace aqhost
