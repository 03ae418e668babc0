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
  explicit Grid(const aq_format_desc& desc)
      : desc_(desc),
        least_(static_cast<float>(desc.int_min)),
        most_(static_cast<float>(desc.int_max)) {
    if (desc.element_kind == AQ_ELEM_TABLE) sort_table();
  }

  /// The codes in use, sorted by rising value, -0 before +0; empty for integers.
  const std::vector<uint32_t>& order() const { return order_; }
  /// The bounds between the values of these codes, one fewer, as table_index() takes them.
  const std::vector<float>& bounds() const { return bounds_; }
  /// 1 if the table has -0 as well as +0.
  uint32_t negative_zero() const { return negative_zero_; }

  /// Rounds t, which is a weight divided by its scale.
  Rounded round(float t, float zero) const {
    if (desc_.element_kind != AQ_ELEM_TABLE) return round_to_integer(t, zero, least_, most_);
    const auto n = static_cast<uint32_t>(order_.size());
    const uint32_t code = order_[table_index(bounds_.data(), n, negative_zero_, t)];
    return {desc_.values[code], code};
  }
  uint32_t code(float t, float zero) const { return round(t, zero).code; }

  /// The code of a weight in a group, and the value of a code there. `step` is scale / global, and
  /// `zero` the second parameter of the group: its zero point, or its minimum if scales are
  /// two-level; 0 if there is neither.
  uint32_t code_of(float weight, float step, float zero) const {
    return two_level(desc_) ? code((weight + zero) / step, 0) : code(weight / step, zero);
  }
  float weight_of(uint32_t code, float step, float zero) const {
    return two_level(desc_) ? value(code, 0) * step - zero : value(code, zero) * step;
  }

  /// The value of a code before it is multiplied by the scale.
  float value(uint32_t code, float zero) const {
    return desc_.element_kind == AQ_ELEM_TABLE ? desc_.values[code]
                                               : integer_value(code, zero, least_);
  }

 private:
  void sort_table() {
    const float* values = desc_.values;
    for (uint32_t c = 0; c < 1u << desc_.element_bits; c++) order_.push_back(c);
    // Sorts codes by value, -0 before +0. Of codes with equal values, the first one stays.
    const auto before = [values](uint32_t a, uint32_t b) {
      const float x = values[a], y = values[b];
      return x != y ? x < y : std::signbit(x) && !std::signbit(y);
    };
    std::stable_sort(order_.begin(), order_.end(), before);
    order_.erase(std::unique(order_.begin(), order_.end(),
                             [&](uint32_t a, uint32_t b) { return !before(a, b); }),
                 order_.end());
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (std::size_t i = 1; i < order_.size(); i++) {
      const float low = values[order_[i - 1]], high = values[order_[i]], middle = (low + high) / 2;
      const bool up = middle == high || order_[i - 1] % 2 != 0;  // whether a tie goes up
      bounds_.push_back(up ? middle : std::nextafter(middle, kInfinity));
      if (low == 0 && high == 0) negative_zero_ = 1;
    }
  }

  const aq_format_desc& desc_;
  const float least_, most_;
  std::vector<uint32_t> order_;
  std::vector<float> bounds_;
  uint32_t negative_zero_ = 0;
};

/// The global scale of a matrix with n weights.
inline float fit_global(const aq_format_desc& desc, const float* weights, int64_t n) {
  float most = 0;
  for (int64_t i = 0; i < n; i++) most = std::max(most, std::fabs(weights[i]));
  if (most == 0) return 1;
  return std::min(desc.global_max / most, std::numeric_limits<float>::max());
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
      const float stored = grid.round(weights[i] / step, params.zero).value * step;
      error += weighted_error(weights[i], stored,
                              importance != nullptr ? static_cast<double>(importance[i]) : 1.0);
    }
    if (error < least) {
      least = error;
      best = params;
    }
  }
  return best;
}

}  // namespace aq
