#include <doctest/doctest.h>

#include <aq/sdk/pack.hpp>
#include <random>
#include <vector>

TEST_CASE("a bit stream of any width, count and stride, as written bit by bit") {
  std::mt19937 random(7);
  constexpr uint32_t kUntouched = 0xdeadbeef;
  for (int bits = 1; bits <= 8; bits++)
    for (const int64_t count : {0, 1, 2, 3, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 97})
      for (const int64_t stride : {1, 3}) {
        CAPTURE(bits);
        CAPTURE(count);
        std::vector<uint8_t> codes(static_cast<std::size_t>(count * stride + 1), 0xff);
        for (int64_t i = 0; i < count; i++)
          codes[static_cast<std::size_t>(i * stride)] =
              static_cast<uint8_t>(random() % (1u << bits));
        const int64_t words = aq::packed_words(count, bits);
        REQUIRE(words * 32 >= count * bits);
        REQUIRE((words - 1) * 32 < count * bits);
        std::vector<uint32_t> packed(static_cast<std::size_t>(words * stride + 1), kUntouched);
        aq::pack_words(codes.data(), count, stride, bits, packed.data(), stride);
        for (int64_t bit = 0; bit < 32 * words; bit++) {
          const uint32_t word = packed[static_cast<std::size_t>(bit / 32 * stride)];
          const int64_t code = bit / bits;
          const int expected =
              code < count ? codes[static_cast<std::size_t>(code * stride)] >> (bit % bits) & 1 : 0;
          REQUIRE(static_cast<int>(word >> (bit % 32) & 1u) == expected);
        }
        REQUIRE(packed.back() == kUntouched);
        std::vector<uint8_t> back(codes.size(), 0xff);
        aq::unpack_words(packed.data(), stride, bits, back.data(), count, stride);
        REQUIRE(back == codes);
      }
}
