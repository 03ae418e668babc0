#include "quant/rounder.h"

#include <algorithm>
#include <limits>

// The loops below are compiled for several instruction sets and chosen at start.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AQ_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define AQ_VECTOR_CLONES
#endif

namespace aqhost {
namespace {

/// Adding and subtracting this rounds |x| < 2^22 to the nearest whole number, ties to even, as
/// nearbyint does, in two operations that vectorize everywhere.
constexpr float kRounding = 0x1.8p23f;
/// Codes saturate long before.
constexpr float kFar = 0x1p20f;

constexpr std::size_t kLanes = 48;  // search factors handled at once

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

/// The integer that w / step is rounded to, as a float.
inline float round_int(float w, float step, float zero, float least, float most) {
  const float t = std::min(std::max(w / step, -kFar), kFar);
  return std::min(std::max((t + kRounding) - kRounding + zero, least), most);
}

struct Candidates {
  alignas(64) float step[kLanes];
  alignas(64) float zero[kLanes];
  alignas(64) double error[kLanes];
};

/// The error of every candidate over one group of integers; each lane sums its columns in order.
AQ_VECTOR_CLONES
void int_errors(const float* weights, const double* importance, int64_t n, float least, float most,
                Candidates& c) {
  for (std::size_t k = 0; k < kLanes; k++) c.error[k] = 0;
  for (int64_t i = 0; i < n; i++) {
    const float w = weights[i];
    const double h = importance[i];
    for (std::size_t k = 0; k < kLanes; k++) {
      const float q = round_int(w, c.step[k], c.zero[k], least, most);
      const double d = w - (q - c.zero[k]) * c.step[k];
      c.error[k] += h * (d * d);
    }
  }
}

AQ_VECTOR_CLONES
void round_ints(int64_t n, const float* weights, const float* step, const float* zero, float least,
                float most, uint8_t* codes, float* values) {
  for (int64_t i = 0; i < n; i++) {
    const float q = round_int(weights[i], step[i], zero[i], least, most);
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(q - least));
    values[i] = (q - zero[i]) * step[i];
  }
}

}  // namespace

Rounder::Rounder(const FormatDesc& desc) : desc_(raw_desc(desc)), grid_(desc_) {}

float Rounder::fit_global(const float* weights, int64_t n) const {
  return desc_.tensor_params > 0 ? aq::fit_global(desc_, weights, n) : 1.0f;
}

aq::GroupParams Rounder::fit(const float* weights, int64_t n, const float* importance,
                             float global) const {
  if (desc_.element_kind != AQ_ELEM_INT || desc_.n_search < 2)
    return aq::fit_group(desc_, grid_, weights, n, importance, global);
  thread_local std::vector<double> h;
  h.assign(static_cast<std::size_t>(n), 1.0);
  if (importance != nullptr) std::copy_n(importance, n, h.begin());
  const auto least = static_cast<float>(desc_.int_min), most = static_cast<float>(desc_.int_max);
  const aq::Extent extent(weights, n);
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
    int_errors(weights, h.data(), n, least, most, candidates);
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
  if (desc_.element_kind == AQ_ELEM_INT) {
    round_ints(n, weights, step, zero, static_cast<float>(desc_.int_min),
               static_cast<float>(desc_.int_max), codes, values);
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    const uint32_t code = grid_.code(weights[i] / step[i], zero[i]);
    codes[i] = static_cast<uint8_t>(code);
    values[i] = grid_.value(code, zero[i]) * step[i];
  }
}

}  // namespace aqhost
