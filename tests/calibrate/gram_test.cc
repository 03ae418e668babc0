#include "calibrate/gram.h"

#include <ATen/Parallel.h>

#include "tensor/bfloat16_tile.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

struct Sample {
  at::Tensor x, original, weights;

  Sample(int64_t n, int64_t d)
      : x(at::randn({n, d}).to(at::kBFloat16)),
        original((x + at::randn({n, d}) * 0.1).to(at::kBFloat16)),
        weights(at::rand({n})) {}
};

at::Tensor gram(const at::Tensor& x, const at::Tensor& weights) {
  at::Tensor sum = at::zeros({x.size(1), x.size(1)});
  add_gram(sum, x, weights);
  return sum;
}

at::Tensor shift(const Sample& s, const at::Tensor& weights, double scale) {
  at::Tensor sum = at::zeros({s.x.size(1), s.x.size(1)});
  add_shift_products(sum, s.x, weights, s.original, scale);
  return sum;
}

/// Computes scale * (s a)^T b in float64.
at::Tensor reference(const at::Tensor& a, const at::Tensor& b, const at::Tensor& s, double scale) {
  at::Tensor left = a.to(at::kDouble);
  if (s.defined()) left = left * s.to(at::kDouble).unsqueeze(1);
  return left.t().mm(b.to(at::kDouble)) * scale;
}

bool skipped() {
  if (has_bfloat16_products()) return false;
  MESSAGE("SKIPPED: this CPU has no AVX512-BF16");
  return true;
}

// sizes below, at and above those of pairs, blocks, tiles and slices
constexpr int64_t kSizes[][2] = {{1, 1}, {2, 64}, {129, 63}, {1000, 130}, {9001, 70}, {300, 2100}};

TEST_CASE("without weights, products of bfloat16 are exact up to float32 sums") {
  if (skipped()) return;
  for (const auto& [n, d] : kSizes) {
    const Sample s(n, d);
    CHECK(relative_error(gram(s.x, {}), reference(s.x, s.x, {}, 1)) < 1e-5);
  }
}

TEST_CASE("weights and differences add no more error than the rounding of factors to bfloat16") {
  constexpr double kOne = 4e-3, kBoth = 8e-3;  // half a unit in the last place is at most 2^-8
  if (skipped()) return;
  for (const auto& [n, d] : kSizes) {
    const Sample s(n, d);
    const at::Tensor change = s.original.to(at::kDouble) - s.x.to(at::kDouble);
    CHECK(relative_error(gram(s.x, s.weights), reference(s.x, s.x, s.weights, 1)) < kBoth);
    CHECK(relative_error(shift(s, s.weights, 3), reference(change, s.x, s.weights, 3)) < kOne);
    CHECK(relative_error(shift(s, {}, 3), reference(change, s.x, {}, 3)) < kOne);
  }
}

TEST_CASE("a Gram matrix is symmetric and does not depend on the number of threads") {
  if (skipped()) return;
  const Sample s(9001, 200);
  const int threads = at::get_num_threads();
  const at::Tensor many = gram(s.x, s.weights), shifted = shift(s, s.weights, 1);
  at::set_num_threads(1);
  CHECK(at::equal(gram(s.x, s.weights), many));
  CHECK(at::equal(shift(s, s.weights, 1), shifted));
  at::set_num_threads(threads);
  CHECK(at::equal(many, many.t()));
}

TEST_CASE("products are added to the earlier sum") {
  if (skipped()) return;
  const Sample s(100, 70);
  at::Tensor sum = at::ones({70, 70});
  add_gram(sum, s.x, {});
  add_shift_products(sum, s.x, {}, s.original, 2);
  CHECK(relative_error(sum, (gram(s.x, {}) + shift(s, {}, 2) + 1).to(at::kDouble)) < 1e-6);
}

TEST_CASE("rows need not be contiguous") {
  if (skipped()) return;
  const Sample s(50, 40);
  const at::Tensor part = s.x.slice(1, 3, 30);
  CHECK(at::equal(gram(part, {}), gram(part.contiguous(), {})));
}

}  // namespace
}  // namespace aqhost
