#pragma once

#include <aq/quantizer.h>

#include <algorithm>
#include <aq/sdk/grid.hpp>
#include <bit>
#include <cmath>
#include <cstdint>
#include <variant>

namespace aqhost {

// What aq::Grid does to one element, without branches, so that loops over it vectorize. Each is
// exact: code and value are Grid's for every t that is not NaN. value() is the value alone, but for
// the sign of 0.

struct ElementCode {
  float value;  // before the scale
  uint32_t code;
};

/// Whole numbers from `least` to `most`.
struct IntElement {
  // adding and subtracting it rounds |t| < 2^22 to nearest, ties to even, as nearbyint does; codes
  // saturate long before
  static constexpr float kRounding = 0x1.8p23f;
  float least, most;
  float far = 0x1p20f;  // no constant: compilers would make branches of where t is

  ElementCode operator()(float t, float zero) const {
    // bounds come first in min and max: so each is one instruction
    const float whole = (std::min(far, std::max(-far, t)) + kRounding) - kRounding;
    const float q = std::min(most, std::max(least, whole + zero));
    return {q - zero, static_cast<uint32_t>(static_cast<int32_t>(q - least))};
  }
  float value(float t, float zero) const {  // the bounds are whole, so they may come first
    return (std::min(most - zero, std::max(least - zero, t)) + kRounding) - kRounding;
  }
};

/// A small binary float, sign, exponent, mantissa from the top bit down: aq::float_values().
struct FloatElement {
  int sign_shift, shift;  // of the sign bit, and of a float's mantissa to its own
  float max, smallest_normal;

  FloatElement(const aq::SmallFloat& type, int bits)
      : sign_shift(32 - bits),
        shift(23 - type.mantissa_bits),
        max(type.max),
        smallest_normal(std::ldexp(1.0f, type.min_exponent)) {}

  ElementCode operator()(float t, float) const {
    constexpr uint32_t kSign = 0x80000000u, kExponent = 0x7f800000u, kHalf = 0x00400000u;
    const uint32_t normal = std::bit_cast<uint32_t>(smallest_normal);
    const float a = std::min(max, std::fabs(t));
    // 1.5 x 2^23 units in a's last place: adding it rounds a to that place, ties to even
    const uint32_t exponent = std::max(std::bit_cast<uint32_t>(a) & kExponent, normal);
    const float rounding =
        std::bit_cast<float>(exponent + (static_cast<uint32_t>(shift) << 23 | kHalf));
    const float r = (a + rounding) - rounding;
    // subnormals have the exponent field 0, as if a 1 stood before their mantissa
    const bool subnormal = r < smallest_normal;
    const float shown = subnormal ? r + smallest_normal : r;
    const uint32_t least = subnormal ? normal : normal - 0x00800000u;
    const uint32_t sign = std::bit_cast<uint32_t>(t) & kSign;
    return {std::bit_cast<float>(std::bit_cast<uint32_t>(r) | sign),
            (std::bit_cast<uint32_t>(shown) - least) >> shift | sign >> sign_shift};
  }
  float value(float t, float zero) const { return (*this)(t, zero).value; }
};

/// Up to 16 values of any kind.
struct TableElement {
  static constexpr std::size_t kMost = 16;
  float bounds[kMost - 1];  // t belongs to the value after as many of them as are <= t; or NaN
  float values[kMost];
  uint32_t codes[kMost];
  uint32_t negative_zero = 0;  // 1 where there is -0 beside +0

  TableElement(const aq_format_desc& desc, const aq::Grid& grid) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const std::vector<uint32_t>& order = grid.order();
    std::fill(bounds, bounds + kMost - 1, std::numeric_limits<float>::quiet_NaN());
    for (std::size_t i = 0; i < order.size(); i++) {
      codes[i] = order[i];
      values[i] = desc.values[order[i]];
      if (i == 0) continue;
      const float middle = (values[i - 1] + values[i]) / 2;
      const bool up = middle == values[i] || order[i - 1] % 2 != 0;  // of a tie
      bounds[i - 1] = up ? middle : std::nextafter(middle, kInfinity);
      if (values[i - 1] == 0 && values[i] == 0) negative_zero = 1;
    }
  }

  ElementCode operator()(float t, float) const {
    uint32_t i = 0;
    for (const float bound : bounds) i += t >= bound ? 1 : 0;
    i -= std::bit_cast<uint32_t>(t) == 0x80000000u ? negative_zero : 0;
    return {values[i], codes[i]};
  }
  float value(float t, float zero) const { return (*this)(t, zero).value; }
};

/// None: only Grid knows.
using Element = std::variant<std::monostate, IntElement, FloatElement, TableElement>;

inline Element make_element(const aq_format_desc& desc, const aq::Grid& grid) {
  if (desc.element_kind == AQ_ELEM_INT)
    return IntElement{static_cast<float>(desc.int_min), static_cast<float>(desc.int_max)};
  if (desc.element_kind != AQ_ELEM_TABLE || desc.element_bits > 8) return {};
  const int bits = desc.element_bits;
  const std::vector<float> values(desc.values, desc.values + (std::size_t{1} << bits));
  for (int mantissa = 0; mantissa < bits - 1; mantissa++) {  // which small float it is, if any
    if (!(values[1] > 0)) break;
    const aq::SmallFloat type{mantissa, std::ilogb(values[1]) + mantissa,
                              *std::max_element(values.begin(), values.end())};
    if (type.smallest() == values[1] && aq::float_values(type, bits) == values)
      return FloatElement(type, bits);
  }
  if (grid.order().size() <= TableElement::kMost) return TableElement(desc, grid);
  return {};
}

}  // namespace aqhost
