#include "quant/tile.h"

#include <algorithm>

namespace aqhost {

AQ_VECTOR_CLONES
void subtract_outer(float* w, const float* err, const float* u, int64_t columns) {
  for (int64_t j = 0; j < columns; j++)
    for (int64_t r = 0; r < kRows; r++) w[j * kRows + r] -= err[r] * u[j];
}

void load_tile(const float* from, int64_t stride, int64_t rows, int64_t n, float* tile) {
  if (rows < kRows) std::fill_n(tile, n * kRows, 0.0f);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < n; i++) tile[i * kRows + r] = from[r * stride + i];
}

void store_tile(const float* tile, int64_t rows, int64_t n, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < n; i++) to[r * stride + i] = tile[i * kRows + r];
}

}  // namespace aqhost
