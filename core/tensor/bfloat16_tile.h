#pragma once

#include <bit>
#include <cstdint>

// Products of bfloat16 matrices by AVX512-BF16, on tiles that stay in the first cache. A number of
// a factor is a pair of terms, two bfloat16, the first one in its low half.

namespace aqhost {

/// Whether this CPU has AVX512-BF16.
bool has_bfloat16_products();

inline constexpr int64_t kTile = 64;  // rows and columns

/// tile [64, 64] += a^T b in float32 over `pairs` pairs of terms; a and b [pairs, 64]. Only the
/// first `columns`, rounded up to 16, need be there in b, and are added to.
void add_tile(float* tile, const uint32_t* a, const uint32_t* b, int64_t pairs,
              int64_t columns = kTile);

/// Makes pairs of two rows of `columns` bfloat16 (<= 64): to[c] = {even[c], odd[c]}, zeros up to
/// the 64th. odd may be null: zeros.
void make_pairs(const uint16_t* even, const uint16_t* odd, int64_t columns, uint32_t* to);

inline float widen(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

/// To the nearest bfloat16, ties to even; finite numbers only.
inline uint32_t narrow(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

}  // namespace aqhost
