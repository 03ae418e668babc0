// The blocks of 256 weights of Q2_K to Q6_K, as ggml-common.h of llama.cpp lays them out, and its
// dequantize_row_*() read them. In them, d and dmin are float16, and numbers of less than a byte
// begin at its low bits:
//   Q2_K  16 bytes: k and m of 4 bits; the codes; d; dmin
//   Q3_K  32 bytes of third bits; the low bits of the codes; 12 bytes: k + 32 of 6 bits; d
//   Q4_K  d; dmin; 12 bytes: k and m of 6 bits; the codes
//   Q5_K  d; dmin; 12 bytes: k and m of 6 bits; 32 bytes of fifth bits; the low bits of the codes
//   Q6_K  the low 4 bits of the codes; their high 2 bits; 16 bytes: k, signed; d
#pragma once

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <array>
#include <cstdint>

namespace kquants {

constexpr int kWeights = 256;

/// What a block contains. A format has 8 or 16 groups; k and m of the others are 0.
struct Block {
  std::array<uint8_t, kWeights> codes{};
  std::array<int, 16> k{}, m{};
  float d = 0, dmin = 0;
};

inline void put_half(uint8_t* bytes, float value) {
  const uint16_t bits = aq::f16_bits(value);
  bytes[0] = static_cast<uint8_t>(bits);
  bytes[1] = static_cast<uint8_t>(bits >> 8);
}
inline float half_at(const uint8_t* bytes) {
  return aq::from_f16(static_cast<uint16_t>(bytes[0] | bytes[1] << 8));
}

/// A plane holds `width` bits of each code, from bit `low` on. In each of its runs of `run` weights
/// it has run * width / 8 bytes: byte j holds the weights j, j + (number of bytes), and so on.
struct Plane {
  int low, width, run;

  void put(const Block& block, uint8_t* bytes) const {
    each([&](int weight, int byte, int shift) {
      bytes[byte] |= static_cast<uint8_t>((block.codes[weight] >> low & mask()) << shift);
    });
  }
  void take(const uint8_t* bytes, Block& block) const {
    each([&](int weight, int byte, int shift) {
      block.codes[weight] |= static_cast<uint8_t>((bytes[byte] >> shift & mask()) << low);
    });
  }

 private:
  int mask() const { return (1 << width) - 1; }
  template <typename Body>
  void each(Body body) const {
    const int size = run * width / 8;
    for (int i = 0; i < kWeights; i++)
      body(i, i / run * size + i % run % size, i % run / size * width);
  }
};

/// The 12 bytes of Q4_K and Q5_K: in the first 4, k of groups 0 to 3, and in the next 4 their m,
/// each with 2 high bits of the group after the next 3; then the low bits of the others.
inline void put_scales_and_minima(const Block& block, uint8_t* bytes) {
  for (std::size_t g = 0; g < 4; g++) {
    bytes[g] = static_cast<uint8_t>(block.k[g] | block.k[g + 4] >> 4 << 6);
    bytes[g + 4] = static_cast<uint8_t>(block.m[g] | block.m[g + 4] >> 4 << 6);
    bytes[g + 8] = static_cast<uint8_t>((block.k[g + 4] & 15) | (block.m[g + 4] & 15) << 4);
  }
}
inline void take_scales_and_minima(const uint8_t* bytes, Block& block) {
  for (std::size_t g = 0; g < 4; g++) {
    block.k[g] = bytes[g] & 63;
    block.m[g] = bytes[g + 4] & 63;
    block.k[g + 4] = (bytes[g + 8] & 15) | bytes[g] >> 6 << 4;
    block.m[g + 4] = bytes[g + 8] >> 4 | bytes[g + 4] >> 6 << 4;
  }
}

/// The 12 bytes of Q3_K: the low 4 bits of groups g and g + 8, then the high 2 bits of groups g,
/// g + 4, g + 8 and g + 12.
inline void put_scales(const Block& block, uint8_t* bytes) {
  for (std::size_t g = 0; g < 16; g++) {
    const int k = block.k[g] + 32;
    bytes[g % 8] |= static_cast<uint8_t>((k & 15) << (g / 8 * 4));
    bytes[8 + g % 4] |= static_cast<uint8_t>(k >> 4 << (g / 4 * 2));
  }
}
inline void take_scales(const uint8_t* bytes, Block& block) {
  for (std::size_t g = 0; g < 16; g++)
    block.k[g] =
        ((bytes[g % 8] >> (g / 8 * 4) & 15) | (bytes[8 + g % 4] >> (g / 4 * 2) & 3) << 4) - 32;
}

/// The bytes of a block of `bits` bits.
constexpr int block_bytes(int bits) {
  constexpr std::array kBytes{84, 110, 144, 176, 210};
  return kBytes[static_cast<std::size_t>(bits - 2)];
}

/// Writes a block; `bytes` are 0.
inline void put_block(int bits, const Block& block, uint8_t* bytes) {
  switch (bits) {
    case 2:
      for (std::size_t g = 0; g < 16; g++)
        bytes[g] = static_cast<uint8_t>(block.k[g] | block.m[g] << 4);
      Plane{0, 2, 128}.put(block, bytes + 16);
      put_half(bytes + 80, block.d);
      put_half(bytes + 82, block.dmin);
      return;
    case 3:
      Plane{2, 1, 256}.put(block, bytes);
      Plane{0, 2, 128}.put(block, bytes + 32);
      put_scales(block, bytes + 96);
      put_half(bytes + 108, block.d);
      return;
    case 4:
    case 5:
      put_half(bytes, block.d);
      put_half(bytes + 2, block.dmin);
      put_scales_and_minima(block, bytes + 4);
      if (bits == 5) Plane{4, 1, 256}.put(block, bytes + 16);
      Plane{0, 4, 64}.put(block, bytes + (bits == 5 ? 48 : 16));
      return;
    default:
      Plane{0, 4, 128}.put(block, bytes);
      Plane{4, 2, 128}.put(block, bytes + 128);
      for (std::size_t g = 0; g < 16; g++) bytes[192 + g] = static_cast<uint8_t>(block.k[g]);
      put_half(bytes + 208, block.d);
  }
}

/// The inverse of put_block().
inline Block take_block(int bits, const uint8_t* bytes) {
  Block block;
  switch (bits) {
    case 2:
      for (std::size_t g = 0; g < 16; g++) {
        block.k[g] = bytes[g] & 15;
        block.m[g] = bytes[g] >> 4;
      }
      Plane{0, 2, 128}.take(bytes + 16, block);
      block.d = half_at(bytes + 80);
      block.dmin = half_at(bytes + 82);
      break;
    case 3:
      Plane{2, 1, 256}.take(bytes, block);
      Plane{0, 2, 128}.take(bytes + 32, block);
      take_scales(bytes + 96, block);
      block.d = half_at(bytes + 108);
      break;
    case 4:
    case 5:
      block.d = half_at(bytes);
      block.dmin = half_at(bytes + 2);
      take_scales_and_minima(bytes + 4, block);
      if (bits == 5) Plane{4, 1, 256}.take(bytes + 16, block);
      Plane{0, 4, 64}.take(bytes + (bits == 5 ? 48 : 16), block);
      break;
    default:
      Plane{0, 4, 128}.take(bytes, block);
      Plane{4, 2, 128}.take(bytes + 128, block);
      for (std::size_t g = 0; g < 16; g++) block.k[g] = (bytes[192 + g] ^ 128) - 128;
      block.d = half_at(bytes + 208);
  }
  return block;
}

}  // namespace kquants
