#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace aqhost {

/// The rows of a matrix that are multiplied by one call, and the columns that this call computes.
/// In what order a BLAS adds depends on the CPU, the number of threads and the number of rows. So
/// every call has one thread, and begins at a multiple of kProductRows: the bytes of a row stay the
/// same if rows before or behind such a multiple are left out. Smaller tiles would take longer;
/// larger ones would keep fewer threads busy.
inline constexpr int64_t kProductRows = 256;
inline constexpr int64_t kProductColumns = 512;

/// Rows [row, row + rows) and columns [column, column + columns) of matrix e of a batch.
struct ProductTile {
  int64_t e, row, rows, column, columns;
};

/// While it lives, MKL uses one thread for what this thread calls. Without it, MKL may divide a
/// product even in a parallel loop, where it gets no more threads, and then adds in another order.
class OneMklThread {
 public:
  OneMklThread();
  ~OneMklThread();
  OneMklThread(const OneMklThread&) = delete;
  OneMklThread& operator=(const OneMklThread&) = delete;

 private:
  int before_;
};

/// Calls body(tile) for all tiles of matrices [count, rows, columns], in parallel. The products and
/// solutions that the body computes take one thread each.
template <typename Body>
void for_product_tiles(int64_t count, int64_t rows, int64_t columns, const Body& body) {
  const int64_t down = (rows + kProductRows - 1) / kProductRows;
  const int64_t across = (columns + kProductColumns - 1) / kProductColumns;
  at::parallel_for(0, count * down * across, 1, [&](int64_t first, int64_t last) {
    const OneMklThread one;
    for (int64_t i = first; i < last; i++) {
      const int64_t row = i % down * kProductRows, column = i / down % across * kProductColumns;
      body(ProductTile{i / down / across, row, std::min(kProductRows, rows - row), column,
                       std::min(kProductColumns, columns - column)});
    }
  });
}

/// a b for a [E, rows, k] and b [E, k, columns], f32. On a CPU in tiles, as above.
at::Tensor row_products(const at::Tensor& a, const at::Tensor& b);

/// c += alpha a b for c [E, rows, columns] on a CPU, in tiles. The columns of c follow each other.
void add_row_products(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, double alpha);

}  // namespace aqhost
