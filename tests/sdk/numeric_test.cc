#include <doctest/doctest.h>

#include <aq/sdk/numeric.hpp>

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// All numbers of `type` that are not negative, in rising order.
std::vector<float> numbers_of(const aq::SmallFloat& type) {
  std::vector<float> numbers;
  const int steps = 1 << type.mantissa_bits;
  for (int exponent = type.min_exponent;; exponent++)
    for (int m = exponent == type.min_exponent ? 0 : steps; m < 2 * steps; m++) {
      numbers.push_back(std::ldexp(static_cast<float>(m), exponent - type.mantissa_bits));
      if (numbers.back() == type.max) return numbers;
    }
}

}  // namespace

TEST_CASE("rounding takes the nearest number, of two the even one, and saturates") {
  for (const aq::SmallFloat& type :
       {aq::kF16, aq::kBF16, aq::kE4M3, aq::kE5M2, aq::kE2M1, aq::kE2M3, aq::kE3M2}) {
    CAPTURE(type.max);
    const std::vector<float> numbers = numbers_of(type);
    CHECK(numbers[1] == type.smallest());
    for (std::size_t i = 0; i + 1 < numbers.size(); i++) {
      const float low = numbers[i], high = numbers[i + 1];
      const double exact = (double{low} + high) / 2;
      const auto middle = static_cast<float>(exact);  // exact, unless it is below all floats
      const float even = i % 2 == 0 ? low : high;
      const bool right = type.round(low) == low && type.round(-high) == -high &&
                         (middle != exact || type.round(middle) == even) &&
                         type.round(std::nextafter(middle, low)) == low &&
                         type.round(std::nextafter(middle, high)) == high &&
                         type.round(-std::nextafter(middle, high)) == -high;
      if (!right) FAIL("between ", low, " and ", high);
    }
    CHECK(type.round(type.max * 1.5f) == type.max);
    CHECK(type.round(-kInf) == -type.max);
    CHECK(std::signbit(type.round(-0.0f)));
  }
}

TEST_CASE("bits of bfloat16 and binary16, there and back") {
  for (uint32_t bits = 0; bits < 65536; bits++) {
    const auto half = static_cast<uint16_t>(bits);
    const float b = aq::from_bf16(half);
    if (std::isfinite(b) && aq::bf16_bits(b) != half) FAIL("bfloat16 ", bits);
    const bool finite = (bits & 0x7c00u) != 0x7c00u;
    if (finite && aq::f16_bits(aq::from_f16(half)) != half) FAIL("binary16 ", bits);
  }
  CHECK(aq::from_f16(0x3c00) == 1.0f);
  CHECK(aq::from_f16(0x0001) == 0x1p-24f);
  CHECK(aq::from_f16(0xfbff) == -65504.0f);
  CHECK(aq::from_bf16(0xc040) == -3.0f);
}

TEST_CASE("to_bf16 gives the bits of kBF16.round(), for every number in its range") {
  for (uint32_t bits = 0; bits < 0x7f7f8000u; bits += 1021) {
    const float x = std::bit_cast<float>(bits);
    if (aq::to_bf16(x) != aq::bf16_bits(aq::kBF16.round(x))) FAIL("of ", x);
  }
}

TEST_CASE("exponents of E8M0 scales: floor, ceiling, and after rounding the mantissa half up") {
  for (uint32_t bits = 0x00800000u; bits < 0x7f800000u; bits += 65521) {
    const float x = std::bit_cast<float>(bits);
    const int floor = static_cast<int>(bits >> 23) - 127;
    const int ceiling = (bits & 0x7fffffu) == 0 ? floor : std::min(floor + 1, 127);
    REQUIRE(aq::e8m0_exponent(x, AQ_ROUND_DOWN, 0) == floor);
    REQUIRE(aq::e8m0_exponent(x, AQ_ROUND_UP, 0) == ceiling);
    for (const int mantissa : {0, 1, 2, 3}) {
      const uint32_t half = 1u << (22 - mantissa);
      const int rounded = static_cast<int>((bits + half) >> 23) - 127;
      REQUIRE(aq::e8m0_exponent(x, AQ_ROUND_EVEN, mantissa) == std::min(rounded, 127));
    }
  }
  CHECK(aq::e8m0_exponent(0x1p-149f, AQ_ROUND_DOWN, 0) == -127);
}

TEST_CASE("a scale is no less than its kind's smallest number and no more than its largest") {
  aq_format_desc desc{};
  const auto scale = [&](int32_t kind, float x, int32_t round = AQ_ROUND_NEAREST) {
    desc.scale_kind = kind;
    desc.scale_round = round;
    return aq::round_scale(desc, x);
  };
  CHECK(scale(AQ_SCALE_F32, 0) == std::numeric_limits<float>::denorm_min());
  CHECK(scale(AQ_SCALE_F32, kInf) == std::numeric_limits<float>::max());
  CHECK(scale(AQ_SCALE_F32, 0.1f) == 0.1f);
  CHECK(scale(AQ_SCALE_F16, 1e-20f) == 0x1p-24f);
  CHECK(scale(AQ_SCALE_F16, 1e20f) == 65504.0f);
  CHECK(scale(AQ_SCALE_BF16, 1.00390625f) == 1.0f);  // between 1 and 1.0078125: the even one
  CHECK(scale(AQ_SCALE_E4M3, 1e-9f) == 0x1p-9f);
  CHECK(scale(AQ_SCALE_E4M3, 1e9f) == 448.0f);
  CHECK(scale(AQ_SCALE_E8M0, 6.0f, AQ_ROUND_DOWN) == 4.0f);
  CHECK(scale(AQ_SCALE_E8M0, 6.0f, AQ_ROUND_UP) == 8.0f);
  CHECK(scale(AQ_SCALE_E8M0, kInf, AQ_ROUND_DOWN) == 0x1p127f);
}
