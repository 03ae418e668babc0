#pragma once

#include <cstdint>

// Products of bfloat16 matrices by AVX512-BF16, on tiles that stay in the first-level cache. Each
// uint32 holds two consecutive bfloat16 of the reduction dimension, the first one in its low half.

namespace aqhost {

/// Whether this CPU has AVX512-BF16.
bool has_bfloat16_products();

inline constexpr int64_t kTile = 64;  // rows and columns

/// tile [64, 64] += a^T b in float32, summed over `pairs` pairs; a and b are [pairs, 64]. Only the
/// first `columns` columns, rounded up to a multiple of 16, must exist in b, and only these are
/// added.
void add_tile(float* tile, const uint32_t* a, const uint32_t* b, int64_t pairs,
              int64_t columns = kTile);

/// Interleaves two rows of `columns` <= 64 bfloat16: to[c] = {even[c], odd[c]}, with zeros up to
/// the 64th. `odd` may be null, which stands for zeros.
void make_pairs(const uint16_t* even, const uint16_t* odd, int64_t columns, uint32_t* to);

}  // namespace aqhost
