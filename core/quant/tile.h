#pragma once

#include <cstdint>

#include "tensor/vector_clones.h"

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
