#pragma once

#include <cstdint>

#include "tensor/vector_clones.h"

namespace aqhost {

/// Rows that are processed together, one column at a time, so that their block of columns stays in
/// the cache. Tiles are stored as [columns][kRows].
inline constexpr int64_t kRows = 64;

/// w[j][r] -= err[r] * u[j].
void subtract_outer(float* w, const float* err, const float* u, int64_t columns);

/// load_tile() copies n columns of a matrix [rows][stride] to a tile and sets missing rows to 0;
/// store_tile() copies them back. The pointer to the matrix must point at the first of these
/// columns.
void load_tile(const float* from, int64_t stride, int64_t rows, int64_t n, float* tile);
void store_tile(const float* tile, int64_t rows, int64_t n, float* to, int64_t stride);

}  // namespace aqhost
