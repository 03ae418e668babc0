#pragma once

#include <aq/quantizer.h>

#include <algorithm>
#include <aq/sdk/grid.hpp>
#include <bit>
#include <cmath>
#include <cstdint>
#include <variant>

namespace aqhost {

// These do what aq::Grid does to one element, but without branches, so that loops over them
// vectorize. They are exact: for every t that is not NaN, code and value equal those of Grid.
// value() computes only the value; the sign of a zero may differ.

struct ElementCode {
  float value;  // before it is multiplied by the scale
  uint32_t code;
};

/// Integers from `least` to `most`.
struct IntElement {
  // Adding and subtracting this constant rounds |t| < 2^22 to the nearest integer, ties to even, as
  // nearbyint does. Codes saturate far below 2^22.
  static constexpr float kRounding = 0x1.8p23f;
  float least, most;
  float far = 0x1p20f;  // not a constant, because compilers would turn min and max with a constant
                        // into branches

  ElementCode operator()(float t, float zero) const {
    // the bounds are the first arguments of min and max, so that each is one instruction
    const float whole = (std::min(far, std::max(-far, t)) + kRounding) - kRounding;
    const float q = std::min(most, std::max(least, whole + zero));
    return {q - zero, static_cast<uint32_t>(static_cast<int32_t>(q - least))};
  }
  float value(float t, float zero) const {  // the bounds are integers, so clamping may come first
    return (std::min(most - zero, std::max(least - zero, t)) + kRounding) - kRounding;
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

  ElementCode operator()(float t, float) const {
    constexpr uint32_t kSign = 0x80000000u, kExponent = 0x7f800000u, kHalf = 0x00400000u;
    const uint32_t normal = std::bit_cast<uint32_t>(smallest_normal);
    const float a = std::min(max, std::fabs(t));
    // This is 1.5 x 2^23 units in the last place of a; adding it rounds a to that place, ties to
    // even.
    const uint32_t exponent = std::max(std::bit_cast<uint32_t>(a) & kExponent, normal);
    const float rounding =
        std::bit_cast<float>(exponent + (static_cast<uint32_t>(shift) << 23 | kHalf));
    const float r = (a + rounding) - rounding;
    // a subnormal has exponent field 0, as if its mantissa were preceded by a 1
    const bool subnormal = r < smallest_normal;
    const float shown = subnormal ? r + smallest_normal : r;
    const uint32_t least = subnormal ? normal : normal - 0x00800000u;
    const uint32_t sign = std::bit_cast<uint32_t>(t) & kSign;
    return {std::bit_cast<float>(std::bit_cast<uint32_t>(r) | sign),
            (std::bit_cast<uint32_t>(shown) - least) >> shift | sign >> sign_shift};
  }
  float value(float t, float zero) const { return (*this)(t, zero).value; }
};

/// A table with up to 16 values of any kind.
struct TableElement {
  static constexpr std::size_t kMost = 16;
  float bounds[kMost - 1];  // t gets the value whose index is the number of bounds <= t; unused
                            // bounds are NaN
  float values[kMost];
  uint32_t codes[kMost];
  uint32_t negative_zero = 0;  // 1 if the table has -0 as well as +0

  TableElement(const aq_format_desc& desc, const aq::Grid& grid) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const std::vector<uint32_t>& order = grid.order();
    std::fill(bounds, bounds + kMost - 1, std::numeric_limits<float>::quiet_NaN());
    for (std::size_t i = 0; i < order.size(); i++) {
      codes[i] = order[i];
      values[i] = desc.values[order[i]];
      if (i == 0) continue;
      const float middle = (values[i - 1] + values[i]) / 2;
      const bool up = middle == values[i] || order[i - 1] % 2 != 0;  // whether a tie goes up
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
  if (grid.order().size() <= TableElement::kMost) return TableElement(desc, grid);
  return {};
}

}  // namespace aqhost
