#pragma once

#include <algorithm>
#include <aq/sdk/grid.hpp>
#include <cmath>
#include <cstdint>
#include <variant>

namespace aqhost {

// These round as aq::Grid does, but without branches, so that loops over them vectorize. They are
// exact: for every t that is not NaN, code and value equal those of Grid to the bit.

/// Integers from `least` to `most`.
struct IntElement {
  float least, most;

  aq::Rounded operator()(float t, float zero) const {
    return aq::round_to_integer(t, zero, least, most);
  }
};

/// A small binary float with sign, exponent and mantissa from the top bit down; see
/// aq::float_values().
struct FloatElement {
  int sign_shift, shift;  // positions of the sign bit, and from a float's mantissa to this type's
  float max, smallest_normal;

  FloatElement(const aq::SmallFloat& type, int bits)
      : sign_shift(32 - bits),
        shift(23 - type.mantissa_bits),
        max(type.max),
        smallest_normal(std::ldexp(1.0f, type.min_exponent)) {}

  aq::Rounded operator()(float t, float) const {
    constexpr uint32_t kSign = 0x80000000u, kExponent = 0x7f800000u, kHalf = 0x00400000u;
    const uint32_t normal = aq::bits_of(smallest_normal);
    const float a = std::min(max, std::fabs(t));
    // This is 1.5 x 2^23 units in the last place of a; adding it rounds a to that place, ties to
    // even.
    const uint32_t exponent = std::max(aq::bits_of(a) & kExponent, normal);
    const float rounding = aq::float_of(exponent + (static_cast<uint32_t>(shift) << 23 | kHalf));
    const float r = (a + rounding) - rounding;
    // a subnormal has exponent field 0, as if its mantissa were preceded by a 1
    const bool subnormal = r < smallest_normal;
    const float shown = subnormal ? r + smallest_normal : r;
    const uint32_t least = subnormal ? normal : normal - 0x00800000u;
    const uint32_t sign = aq::bits_of(t) & kSign;
    return {aq::float_of(aq::bits_of(r) | sign),
            (aq::bits_of(shown) - least) >> shift | sign >> sign_shift};
  }
};

/// A table with up to 16 values of any kind.
struct TableElement {
  static constexpr std::size_t kMaximumValues = 16;
  float bounds[kMaximumValues - 1];  // as in aq::Grid; unused bounds are NaN
  float values[kMaximumValues];
  uint32_t codes[kMaximumValues];
  uint32_t negative_zero;

  TableElement(const aq_format_desc& desc, const aq::Grid& grid)
      : negative_zero(grid.negative_zero()) {
    std::fill(bounds, bounds + kMaximumValues - 1, std::numeric_limits<float>::quiet_NaN());
    std::copy(grid.bounds().begin(), grid.bounds().end(), bounds);
    for (std::size_t i = 0; i < grid.order().size(); i++) {
      codes[i] = grid.order()[i];
      values[i] = desc.values[codes[i]];
    }
  }

  aq::Rounded operator()(float t, float) const {
    uint32_t i = 0;
    for (const float bound : bounds) i += t >= bound ? 1 : 0;
    i -= aq::zeros_back(t, negative_zero);
    return {values[i], codes[i]};
  }
};

/// monostate: only Grid can compute this element.
using Element = std::variant<std::monostate, IntElement, FloatElement, TableElement>;

inline Element make_element(const aq_format_desc& desc, const aq::Grid& grid) {
  if (desc.element_kind == AQ_ELEM_INT)
    return IntElement{static_cast<float>(desc.int_min), static_cast<float>(desc.int_max)};
  if (desc.element_kind != AQ_ELEM_TABLE || desc.element_bits > 8) return {};
  const int bits = desc.element_bits;
  const std::vector<float> values(desc.values, desc.values + (std::size_t{1} << bits));
  // looks for a small float with these values
  for (int mantissa = 0; mantissa < bits - 1; mantissa++) {
    if (!(values[1] > 0)) break;
    const aq::SmallFloat type{mantissa, std::ilogb(values[1]) + mantissa,
                              *std::max_element(values.begin(), values.end())};
    if (type.smallest() == values[1] && aq::float_values(type, bits) == values)
      return FloatElement(type, bits);
  }
  if (grid.order().size() <= TableElement::kMaximumValues) return TableElement(desc, grid);
  return {};
}

}  // namespace aqhost
