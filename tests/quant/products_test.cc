#include "quant/products.h"

#include <ATen/CPUGeneratorImpl.h>

#include <array>
#include <utility>

#include "torch_doctest.h"

namespace aqhost {
namespace {

/// Runs the body with several numbers of threads.
template <typename Body>
void with_threads(const Body& body) {
  const int before = at::get_num_threads();
  for (const int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    CAPTURE(threads);
    body();
  }
  at::set_num_threads(before);
}

at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed));
}

}  // namespace

TEST_CASE("every tile has rows and columns of its own, and together they are everything") {
  for (const int64_t rows : {1, 255, 256, 257, 600})
    for (const int64_t columns : {1, 512, 700}) {
      CAPTURE(rows);
      CAPTURE(columns);
      const at::Tensor visits = at::zeros({2, rows, columns}, at::kInt);
      for_product_tiles(2, rows, columns, [&](const ProductTile& t) {
        visits[t.e].narrow(0, t.row, t.rows).narrow(1, t.column, t.columns).add_(1);
      });
      CHECK((visits == 1).all().item<bool>());
    }
}

// With 1024 values to add, MKL adds in another order if there are few rows; on CPUs with AVX2 also
// with fewer values.
TEST_CASE("products have the same bytes by parts of the rows, and with any number of threads") {
  for (const int64_t in : {96, 256, 1024}) {
    CAPTURE(in);
    const at::Tensor a = random({2, 600, in}, 1), h = random({2, in, in}, 2);
    const at::Tensor sums = random({2, 600, in}, 3);
    // the solver adds to a part of the columns
    const at::Tensor upper = h.narrow(1, 0, in / 2).narrow(2, 8, in - 8);
    const auto multiply = [&](int64_t begin, int64_t rows) -> std::array<at::Tensor, 3> {
      const at::Tensor part = a.narrow(1, begin, rows).contiguous();
      const at::Tensor sum = sums.narrow(1, begin, rows).clone(at::MemoryFormat::Contiguous);
      add_row_products(sum.narrow(2, 8, in - 8), part.narrow(2, 0, in / 2), upper, -1);
      return {row_products(part, h), row_products(part, h.transpose(1, 2)), sum};
    };
    const at::Tensor wide = a.to(at::kDouble), wide_h = h.to(at::kDouble);
    const at::Tensor expected_sum = sums.to(at::kDouble);
    at::Tensor(expected_sum.narrow(2, 8, in - 8))
        .baddbmm_(wide.narrow(2, 0, in / 2), upper.to(at::kDouble), 1, -1);
    const std::array<at::Tensor, 3> expected{at::bmm(wide, wide_h),
                                             at::bmm(wide, wide_h.transpose(1, 2)), expected_sum};
    const auto whole = multiply(0, 600);
    for (std::size_t i = 0; i < 3; i++) CHECK(relative_error(whole[i], expected[i]) < 1e-6);
    with_threads([&] {
      for (const auto& [begin, rows] :
           {std::pair{0, 600}, {0, 256}, {256, 256}, {0, 512}, {512, 88}, {256, 344}}) {
        CAPTURE(begin);
        CAPTURE(rows);
        const auto part = multiply(begin, rows);
        for (std::size_t i = 0; i < 3; i++) CHECK(part[i].equal(whole[i].narrow(1, begin, rows)));
      }
    });
  }
}

}  // namespace aqhost
