#pragma once

#include <cstdint>

// Plain loops that are compiled for several instruction sets and chosen at start.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AQ_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define AQ_VECTOR_CLONES
#endif

namespace aqhost {

/// Rows that are worked on together, one column at a time; the block of columns they are in stays
/// in the cache. Tiles are stored [columns][kRows].
inline constexpr int64_t kRows = 64;

/// w[j][r] -= err[r] * u[j].
void subtract_outer(float* w, const float* err, const float* u, int64_t columns);

/// rows [rows][stride] from column `begin` on to a tile of n columns, the missing rows 0; and back.
void load_tile(const float* from, int64_t stride, int64_t rows, int64_t n, float* tile);
void store_tile(const float* tile, int64_t rows, int64_t n, float* to, int64_t stride);

}  // namespace aqhost
