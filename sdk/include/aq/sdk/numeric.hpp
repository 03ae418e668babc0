// aq/sdk/numeric.hpp - bit-exact rounding to small floating-point types.
#pragma once

#include <algorithm>
#include <aq/sdk/grid_math.hpp>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace aq {

inline constexpr SmallFloat kF16 = f16();
inline constexpr SmallFloat kBF16 = bf16();
inline constexpr SmallFloat kE4M3 = e4m3();
inline constexpr SmallFloat kE5M2{2, -14, 57344.0f};
inline constexpr SmallFloat kE2M1{1, 0, 6.0f};  // OCP MX v1.0, table 5 ff.
inline constexpr SmallFloat kE2M3{3, 0, 7.5f};
inline constexpr SmallFloat kE3M2{2, -2, 28.0f};

inline uint16_t bf16_bits(float x) {  // x must be exactly a bfloat16
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
}
inline float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

/// The bits of the bfloat16 that is nearest to a finite x within range, ties to even. They equal
/// those of kBF16.round(x), but take only a few integer operations of one type, so that loops over
/// this function vectorize.
inline uint32_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

/// The bits of x as IEEE binary16. x must be exactly a binary16 number.
inline uint16_t f16_bits(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  // the product turns a binary16 subnormal into a float subnormal with the same fraction
  const uint32_t magnitude = std::bit_cast<uint32_t>(std::fabs(x) * 0x1p-112f);
  return static_cast<uint16_t>(sign | magnitude >> 13);
}
inline float from_f16(uint16_t bits) {
  const uint32_t fraction = uint32_t{bits & 0x7fffu} << 13;
  const float magnitude = (bits & 0x7c00u) == 0x7c00u  // infinity or NaN
                              ? std::bit_cast<float>(fraction | 0x7f800000u)
                              : std::bit_cast<float>(fraction) * 0x1p112f;
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

/// The bits of x >= 0 as E4M3, and the inverse. x must be exactly an E4M3 number; NaN is 0x7f.
inline uint8_t e4m3_bits(float x) {
  const int exponent = x > 0 ? std::max(std::ilogb(x), -6) : -6;
  return static_cast<uint8_t>((exponent + 6) * 8 + static_cast<int>(std::ldexp(x, 3 - exponent)));
}
inline float from_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = (bits & 7) + (exponent > 0 ? 8 : 0);
  const float magnitude =
      (bits & 0x7f) == 0x7f ? std::numeric_limits<float>::quiet_NaN()
                            : std::ldexp(static_cast<float>(mantissa), std::max(exponent, 1) - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

/// The value of an E8M0 code, 2^(code - 127); NaN for 255 (OCP MX v1.0, 5.4.1).
inline float from_e8m0(uint8_t bits) {
  return bits == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, bits - 127);
}

/// The values of the 2^bits codes of a small float; from the top bit down, a code holds sign,
/// exponent and mantissa, as in IEEE 754. Codes above `max` (infinities and NaN) have the value
/// `max`. No weight gets such a code, because the first of several codes with equal values is
/// taken.
inline std::vector<float> float_values(const SmallFloat& type, int bits) {
  const int count = 1 << (bits - 1), one = 1 << type.mantissa_bits;
  std::vector<float> values;
  for (int c = 0; c < count; c++) {
    const int exponent = c >> type.mantissa_bits;
    const int mantissa = c % one + (exponent > 0 ? one : 0);
    const float value =
        std::ldexp(static_cast<float>(mantissa),
                   std::max(exponent, 1) - 1 + type.min_exponent - type.mantissa_bits);
    values.push_back(std::min(value, type.max));
  }
  for (int c = 0; c < count; c++) values.push_back(-values[static_cast<std::size_t>(c)]);
  return values;
}

}  // namespace aq
