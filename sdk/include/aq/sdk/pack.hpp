// aq/sdk/pack.hpp - turns codes into bytes and back: little-endian bit streams of any width.
#pragma once

#include <cstddef>
#include <cstdint>

namespace aq {

/// The number of words of `word_bits` bits that hold `count` codes of `bits` bits.
inline int64_t packed_words(int64_t count, int bits, int word_bits = 32) {
  return (count * bits + word_bits - 1) / word_bits;
}

/// Writes `count` codes, which lie `code_stride` apart, as a little-endian bit stream into words
/// (uint8_t or uint32_t, at least as wide as a code), which lie `word_stride` apart. A code may
/// cross two words; unused bits of the last word are zero. With uint32_t this equals
/// compressed-tensors' pack_to_int32; with uint8_t it equals its packing of fp4 (the even element
/// in the low nibble) and fp6 (four codes in three bytes).
template <typename Word>
void pack_words(const uint8_t* codes, int64_t count, int64_t code_stride, int bits, Word* words,
                int64_t word_stride) {
  constexpr int kBits = 8 * sizeof(Word);
  uint64_t buffer = 0;
  int filled = 0;
  for (int64_t i = 0; i < count; i++) {
    buffer |= uint64_t{codes[i * code_stride]} << filled;
    filled += bits;
    if (filled < kBits) continue;
    *words = static_cast<Word>(buffer);
    words += word_stride;
    buffer >>= kBits;
    filled -= kBits;
  }
  if (filled > 0) *words = static_cast<Word>(buffer);
}

/// The inverse of pack_words().
template <typename Word>
void unpack_words(const Word* words, int64_t word_stride, int bits, uint8_t* codes, int64_t count,
                  int64_t code_stride) {
  const uint32_t mask = (1u << bits) - 1;
  uint64_t buffer = 0;
  int filled = 0;
  for (int64_t i = 0; i < count; i++) {
    if (filled < bits) {
      buffer |= uint64_t{*words} << filled;
      words += word_stride;
      filled += 8 * static_cast<int>(sizeof(Word));
    }
    codes[i * code_stride] = static_cast<uint8_t>(static_cast<uint32_t>(buffer) & mask);
    buffer >>= bits;
    filled -= bits;
  }
}

}  // namespace aq
