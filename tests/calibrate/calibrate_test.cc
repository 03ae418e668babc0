#include <algorithm>
#include <functional>

#include "base/error.h"
#include "calibrate/hessian.h"
#include "calibrate/windows.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

/// The sum of s x x^T in float64.
at::Tensor reference(const at::Tensor& x, const at::Tensor& s) {
  const at::Tensor d = x.to(at::kDouble);
  return (d * s.to(at::kDouble).unsqueeze(1)).t().mm(d);
}

}  // namespace

TEST_CASE("a Hessian is the weighted sum of x x^T, in float32 within 1e-5 of float64") {
  const at::Tensor x = at::randn({5000, 48}), s = at::rand({5000});
  Hessian h(48);
  h.add(x.narrow(0, 0, 1234), s.narrow(0, 0, 1234));
  h.add(x.narrow(0, 1234, 3766), s.narrow(0, 1234, 3766));
  h.add(at::empty({0, 48}), at::empty({0}));
  CHECK(relative_error(h.sum(), reference(x, s)) < 1e-5);
  CHECK(h.tokens() == 5000);
  CHECK(h.weight() == doctest::Approx(s.sum().item<double>()));

  Hessian plain(48);
  plain.add(x, {});
  CHECK(relative_error(plain.sum(), reference(x, at::ones({5000}))) < 1e-5);
  CHECK(plain.weight() == 5000);
}

TEST_CASE("a mixed Hessian counts as min_tokens tokens of mean weight") {
  Hessian own(8), all(8);
  const at::Tensor x = at::randn({10, 8}), layer = at::randn({200, 8});
  own.add(x, at::full({10}, 0.5f));
  all.add(layer, {});
  const at::Tensor mixed = Hessian::mix(own, all, Hessian::share_of_all(10, 200, 50, 0.5)).sum();
  // 40 tokens are missing: the 200 of weight 1 count as 40 of weight 0.5
  const at::Tensor expected =
      reference(x, at::full({10}, 0.5)) + reference(layer, at::full({200}, 0.1));
  CHECK(relative_error(mixed, expected) < 1e-5);

  const Hessian none(8);
  CHECK(Hessian::mix(none, all, Hessian::share_of_all(0, 200, 50, 0.5)).sum().equal(all.sum()));
}

TEST_CASE("a shift is the weighted sum of (x0 - x) x^T, and mixes as the Hessian does") {
  const at::Tensor x = at::randn({300, 16}), x0 = x + at::randn({300, 16}) * 0.1;
  const at::Tensor s = at::rand({300});
  Hessian h(16), all(16);
  h.add(x, s);
  CHECK_FALSE(h.shift().defined());
  h.add_shift(x.narrow(0, 0, 100), s.narrow(0, 0, 100), x0.narrow(0, 0, 100), 3);
  const at::Tensor d =
      (x0 - x).narrow(0, 0, 100).to(at::kDouble) * s.narrow(0, 0, 100).unsqueeze(1);
  CHECK(relative_error(h.shift(), d.t().mm(x.narrow(0, 0, 100).to(at::kDouble)) * 3) < 1e-4);
  all.add(x, {});
  CHECK(Hessian::mix(h, all, 0.5).shift().equal(h.shift()));
  CHECK(Hessian::mix(h, all, 0.5).tokens() == 300);
}

TEST_CASE("a sample depends on its seed, is ordered, has no repeats and is part of larger ones") {
  const std::vector<int64_t> ten = sample(33, 10, 7), twenty = sample(33, 20, 7);
  CHECK(ten == sample(33, 10, 7));
  CHECK(ten != sample(33, 10, 8));
  CHECK(ten.size() == 10);
  CHECK(std::adjacent_find(ten.begin(), ten.end(), std::greater_equal<>()) == ten.end());
  CHECK(std::includes(twenty.begin(), twenty.end(), ten.begin(), ten.end()));
  CHECK(sample(3, 40, 7) == std::vector<int64_t>{0, 1, 2});
}

TEST_CASE("files share the windows by weight, and others give what one of them lacks") {
  using Turns = std::vector<std::size_t>;
  CHECK(share_windows({9, 9}, {1, 1}, 6) == Turns{0, 1, 0, 1, 0, 1});
  CHECK(share_windows({9, 9}, {3, 1}, 8) == Turns{0, 0, 1, 0, 0, 0, 1, 0});
  CHECK(share_windows({1, 9, 9}, {1, 1, 1}, 7) == Turns{0, 1, 2, 1, 2, 1, 2});
  CHECK(share_windows({2, 1}, {1, 5}, 9) == Turns{1, 0, 0});
}

TEST_CASE(
    "random windows: all ids appear, a seed gives the same ones, and more windows begin alike") {
  const at::Tensor windows = random_windows(8, 500, 100, 3);
  const at::Tensor counts = at::bincount(windows.flatten(), {}, 100);
  CHECK(counts.size(0) == 100);
  CHECK(counts.min().item<int64_t>() > 15);  // 40 are expected
  CHECK(counts.max().item<int64_t>() < 75);
  CHECK(random_windows(5, 500, 100, 3).equal(windows.narrow(0, 0, 5)));
  CHECK_FALSE(random_windows(8, 500, 100, 4).equal(windows));
}

}  // namespace aqhost
