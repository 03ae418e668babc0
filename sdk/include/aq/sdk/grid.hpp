// aq/sdk/grid.hpp - the contract at the top of aq/quantizer.h as plain code, for one group at a
// time. The callbacks of described formats are built from this code, and the host's own code must
// equal it bit for bit.
#pragma once

#include <aq/sdk/numeric.hpp>
#include <limits>

namespace aq {

/// How the elements of a described format are rounded. Borrows the description.
class Grid {
 public:
  explicit Grid(const aq_format_desc& desc) : desc_(desc) {
    if (desc.element_kind != AQ_ELEM_TABLE) return;
    const uint32_t count = 1u << desc.element_bits;
    for (uint32_t c = 0; c < count; c++) order_.push_back(c);
    // Sorts codes by value, -0 before +0. Of codes with equal values, the first one stays.
    const auto before = [&](uint32_t a, uint32_t b) {
      const float x = desc.values[a], y = desc.values[b];
      return x != y ? x < y : std::signbit(x) && !std::signbit(y);
    };
    std::stable_sort(order_.begin(), order_.end(), before);
    order_.erase(std::unique(order_.begin(), order_.end(),
                             [&](uint32_t a, uint32_t b) { return !before(a, b); }),
                 order_.end());
  }

  /// The codes in use, sorted by rising value, -0 before +0; empty for integers.
  const std::vector<uint32_t>& order() const { return order_; }

  /// The code nearest to t, which is a weight divided by its scale.
  uint32_t code(float t, float zero) const {
    if (desc_.element_kind == AQ_ELEM_TABLE) return nearest(t);
    const auto least = static_cast<float>(desc_.int_min), most = static_cast<float>(desc_.int_max);
    return static_cast<uint32_t>(std::clamp(std::nearbyint(t) + zero, least, most) - least);
  }

  /// The value of a code before it is multiplied by the scale.
  float value(uint32_t code, float zero) const {
    if (desc_.element_kind == AQ_ELEM_TABLE) return desc_.values[code];
    return static_cast<float>(static_cast<int32_t>(code) + desc_.int_min) - zero;
  }

 private:
  uint32_t nearest(float t) const {
    // `above` is the first value above t; t lies between it and the value before it
    const auto above = std::upper_bound(order_.begin(), order_.end(), t,
                                        [&](float x, uint32_t c) { return x < desc_.values[c]; });
    if (above == order_.begin()) return order_.front();
    if (above == order_.end()) return order_.back();
    const uint32_t low = *(above - 1), high = *above;
    const float a = desc_.values[low], b = desc_.values[high];
    const float middle = (a + b) / 2;
    const bool up = t > middle || (t == middle && low % 2 != 0);
    return signed_zero(up ? high : low, t);
  }

  /// If the code's value is zero, returns the code of +0 or -0 that has the sign of t.
  uint32_t signed_zero(uint32_t code, float t) const {
    if (desc_.values[code] != 0) return code;
    for (const uint32_t c : order_)
      if (desc_.values[c] == 0 && std::signbit(desc_.values[c]) == std::signbit(t)) return c;
    return code;
  }

  const aq_format_desc& desc_;
  std::vector<uint32_t> order_;
};

/// The global scale of a matrix with n weights.
inline float fit_global(const aq_format_desc& desc, const float* weights, int64_t n) {
  float most = 0;
  for (int64_t i = 0; i < n; i++) most = std::max(most, std::fabs(weights[i]));
  if (most == 0) return 1;
  return std::min(desc.global_max / most, std::numeric_limits<float>::max());
}

/// The minimum and maximum of a group, extended to include 0.
struct Extent {
  float min = 0, max = 0;
  Extent(const float* weights, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
      min = std::min(min, weights[i]);
      max = std::max(max, weights[i]);
    }
  }
  float absmax() const { return std::max(-min, max); }
};

/// Scale (and zero point) of a group. params_for() computes them for one search factor f.
struct GroupParams {
  float scale = 1, zero = 0;
};
inline GroupParams params_for(const aq_format_desc& desc, const Extent& extent, float global,
                              float f) {
  GroupParams params;
  if (desc.fit_rule == AQ_FIT_MINMAX) {
    if (extent.min == 0 && extent.max == 0) return params;
    const auto steps = static_cast<float>(desc.int_max - desc.int_min);
    params.scale = round_scale(desc, f * ((extent.max - extent.min) * global / steps));
    const auto least = static_cast<float>(desc.int_min), most = static_cast<float>(desc.int_max);
    params.zero =
        std::clamp(std::nearbyint(least - f * extent.min / (params.scale / global)), least, most);
  } else if (extent.absmax() > 0) {
    params.scale = round_scale(desc, f * (extent.absmax() * global / desc.scale_divisor));
  }
  return params;
}

/// Fits one group of n weights. `importance` may be nullptr.
inline GroupParams fit_group(const aq_format_desc& desc, const Grid& grid, const float* weights,
                             int64_t n, const float* importance, float global) {
  const Extent extent(weights, n);
  if (desc.n_search == 0) return params_for(desc, extent, global, 1.0f);
  GroupParams best;
  double least = std::numeric_limits<double>::infinity();
  for (uint32_t k = 0; k < desc.n_search; k++) {
    const GroupParams params = params_for(desc, extent, global, desc.search[k]);
    const float step = params.scale / global;
    double error = 0;
    for (int64_t i = 0; i < n; i++) {
      const float stored =
          grid.value(grid.code(weights[i] / step, params.zero), params.zero) * step;
      const double d = weights[i] - stored;
      error += (importance != nullptr ? static_cast<double>(importance[i]) : 1.0) * (d * d);
    }
    if (error < least) {
      least = error;
      best = params;
    }
  }
  return best;
}

}  // namespace aq
