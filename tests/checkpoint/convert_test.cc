#include "checkpoint/convert.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "base/error.h"

namespace aqhost {
namespace {

using Limits = std::numeric_limits<float>;

/// What convert_f32() makes of the first out.size() of these elements, of a tensor "t".
template <typename Element>
void convert(DType type, const std::vector<Element>& elements, std::span<float> out,
             int64_t begin = 0) {
  const TensorInfo info{"t", type, {static_cast<int64_t>(elements.size())}};
  convert_f32(info, std::as_bytes(std::span(elements)), begin, out, "f");
}

template <typename Element>
float one(DType type, Element element) {
  const std::vector<Element> elements{element};
  float value = 0;
  convert(type, elements, {&value, 1});
  return value;
}

/// IEEE 754 binary16 by its definition: (-1)^s 2^(e-15) 1.m, and 2^-14 0.m for e = 0.
float half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>((bits & 0x8000) != 0 ? -magnitude : magnitude);
}

TEST_CASE("every finite float16 is the value that IEEE 754 gives it, with its sign") {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const auto element = static_cast<uint16_t>(bits);
    if ((element & 0x7c00) == 0x7c00) {
      if (element % 97 == 0) CHECK_THROWS_AS(one(DType::kF16, element), Error);
      continue;
    }
    const float value = one(DType::kF16, element);
    if (value != half(element) || std::signbit(value) != ((element & 0x8000) != 0)) {
      CAPTURE(bits);
      CHECK(value == half(element));
      CHECK(std::signbit(value) == ((element & 0x8000) != 0));
    }
  }
}

TEST_CASE("every finite bfloat16 is the upper half of its float32") {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const auto element = static_cast<uint16_t>(bits);
    if ((element & 0x7f80) == 0x7f80) continue;
    const float value = one(DType::kBF16, element);
    if (std::bit_cast<uint32_t>(value) != bits << 16) {
      CAPTURE(bits);
      CHECK(std::bit_cast<uint32_t>(value) == bits << 16);
    }
  }
}

TEST_CASE("float32 goes through unchanged: subnormals, both zeros, the largest") {
  for (const float value : {0.f, -0.f, 1.f, -1.5f, Limits::denorm_min(), -Limits::max()})
    CHECK(std::bit_cast<uint32_t>(one(DType::kF32, value)) == std::bit_cast<uint32_t>(value));
}

TEST_CASE("elements are read at any alignment") {
  const std::vector<uint16_t> elements{0x3f80, 0x4000};  // 1 2
  std::vector<std::byte> shifted(5);
  std::memcpy(shifted.data() + 1, elements.data(), 4);
  std::vector<float> out(2);
  convert_f32({"t", DType::kBF16, {2}}, std::span(shifted).subspan(1), 0, out, "f");
  CHECK(out == std::vector<float>{1, 2});
}

TEST_CASE("NaN and infinity are refused, with the element's place in the tensor") {
  const std::vector<std::pair<DType, uint16_t>> bad{
      {DType::kF16, 0x7c00},  {DType::kF16, 0xfc00},  {DType::kF16, 0x7e01}, {DType::kF16, 0xfdff},
      {DType::kBF16, 0x7f80}, {DType::kBF16, 0xff80}, {DType::kBF16, 0x7fc0}};
  for (const auto& [type, element] : bad) {
    const std::vector<uint16_t> elements{0, element, 0};  // from the tensor's second on
    std::vector<float> out(3);
    CHECK_THROWS_WITH_AS(convert(type, elements, out, 1),
                         doctest::Contains("f: tensor t: element 2 is "), Error);
  }
  CHECK_THROWS_WITH_AS(one(DType::kF32, -Limits::infinity()), "f: tensor t: element 0 is -inf",
                       Error);
  CHECK_THROWS_WITH_AS(one(DType::kF32, Limits::quiet_NaN()), "f: tensor t: element 0 is nan",
                       Error);
}

TEST_CASE("a type that is no float is refused by name") {
  CHECK_THROWS_WITH_AS(one(DType::kI8, int8_t{1}), "f: tensor t is I8, expected F16, BF16 or F32",
                       Error);
  CHECK_THROWS_AS(one(DType::kF64, 1.0), Error);
  CHECK_THROWS_AS(one(DType::kF8E4M3, uint8_t{1}), Error);
}

}  // namespace
}  // namespace aqhost
