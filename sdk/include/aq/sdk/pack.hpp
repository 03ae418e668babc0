// aq/sdk/pack.hpp - codes to bytes and back: little-endian bit streams of any width.
#pragma once

#include <cstddef>
#include <cstdint>

namespace aq {

/// 32-bit words that hold `count` codes of `bits`.
inline int64_t packed_words(int64_t count, int bits) { return (count * bits + 31) / 32; }

/// Writes `count` codes, `code_stride` apart, as a little-endian bit stream over words,
/// `word_stride` apart; a code may cross two words, the tail is zero. compressed-tensors'
/// pack_to_int32.
inline void pack_words(const uint8_t* codes, int64_t count, int64_t code_stride, int bits,
                       uint32_t* words, int64_t word_stride) {
  uint64_t buffer = 0;
  int filled = 0;
  for (int64_t i = 0; i < count; i++) {
    buffer |= uint64_t{codes[i * code_stride]} << filled;
    filled += bits;
    if (filled < 32) continue;
    *words = static_cast<uint32_t>(buffer);
    words += word_stride;
    buffer >>= 32;
    filled -= 32;
  }
  if (filled > 0) *words = static_cast<uint32_t>(buffer);
}

/// The inverse of pack_words().
inline void unpack_words(const uint32_t* words, int64_t word_stride, int bits, uint8_t* codes,
                         int64_t count, int64_t code_stride) {
  const uint32_t mask = (1u << bits) - 1;
  uint64_t buffer = 0;
  int filled = 0;
  for (int64_t i = 0; i < count; i++) {
    if (filled < bits) {
      buffer |= uint64_t{*words} << filled;
      words += word_stride;
      filled += 32;
    }
    codes[i * code_stride] = static_cast<uint8_t>(static_cast<uint32_t>(buffer) & mask);
    buffer >>= bits;
    filled -= bits;
  }
}

}  // namespace aq
