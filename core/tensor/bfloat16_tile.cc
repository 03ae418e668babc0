#include "tensor/bfloat16_tile.h"

#include <immintrin.h>

#include <algorithm>

#include "tensor/vector_clones.h"

#define AQ_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512bf16")))

namespace aqhost {
namespace {

constexpr int64_t kRegisterRows = 4;  // rows of a tile that are in registers at once
constexpr int64_t kCachedPairs = 64;  // pairs that stay in the first-level cache

/// Adds a^T b to 4 rows of a tile; `a` begins at the first of these rows.
template <int kVectors>
AQ_AVX512_BF16 void add_rows(float* tile, const uint32_t* a, const uint32_t* b, int64_t pairs) {
  __m512 sums[kRegisterRows][kVectors];
  for (int64_t r = 0; r < kRegisterRows; r++)
    for (int64_t v = 0; v < kVectors; v++) sums[r][v] = _mm512_loadu_ps(tile + r * kTile + 16 * v);
  for (int64_t p = 0; p < pairs; p++, a += kTile, b += kTile) {
    __m512bh right[kVectors];
    for (int64_t v = 0; v < kVectors; v++) right[v] = (__m512bh)_mm512_loadu_si512(b + 16 * v);
    for (int64_t r = 0; r < kRegisterRows; r++) {
      const auto left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r]));
      for (int64_t v = 0; v < kVectors; v++)
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], left, right[v]);
    }
  }
  for (int64_t r = 0; r < kRegisterRows; r++)
    for (int64_t v = 0; v < kVectors; v++) _mm512_storeu_ps(tile + r * kTile + 16 * v, sums[r][v]);
}

}  // namespace

bool has_bfloat16_products() { return __builtin_cpu_supports("avx512bf16") != 0; }

void add_tile(float* tile, const uint32_t* a, const uint32_t* b, int64_t pairs, int64_t columns) {
  static constexpr decltype(&add_rows<4>) kAdd[] = {add_rows<1>, add_rows<2>, add_rows<3>,
                                                    add_rows<4>};
  const auto add = kAdd[(columns - 1) / 16];
  for (int64_t p = 0; p < pairs; p += kCachedPairs)
    for (int64_t r = 0; r < kTile; r += kRegisterRows)
      add(tile + r * kTile, a + p * kTile + r, b + p * kTile, std::min(kCachedPairs, pairs - p));
}

AQ_VECTOR_CLONES
void make_pairs(const uint16_t* even, const uint16_t* odd, int64_t columns, uint32_t* to) {
  if (odd != nullptr)
    for (int64_t c = 0; c < columns; c++) to[c] = even[c] | uint32_t{odd[c]} << 16;
  else
    for (int64_t c = 0; c < columns; c++) to[c] = even[c];
  std::fill(to + columns, to + kTile, 0);
}

}  // namespace aqhost
