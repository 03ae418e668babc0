#include "forward/fused.h"

#include <ATen/Parallel.h>

#include "distance.h"
#include "torch_doctest.h"

// Every function is compared with its definition in float64, with sizes below, at and above the
// number of values that are computed side by side, and enough rows for several threads.

namespace aqhost {
namespace {

constexpr at::ScalarType kTypes[] = {at::kFloat, at::kBFloat16};

double tolerance(at::ScalarType dtype) { return dtype == at::kFloat ? 1e-6 : 4e-3; }

}  // namespace

TEST_CASE("fused_rms_norm is the RMS norm") {
  for (const int64_t size : {1, 15, 16, 100, 128})
    for (const at::ScalarType from : kTypes)
      for (const at::ScalarType to : kTypes) {
        CAPTURE(size);
        const at::Tensor x = at::randn({3, 700, size}).to(from);
        const at::Tensor weight = at::rand({size}).add_(0.5).to(to);
        REQUIRE(can_fuse(x));
        const at::Tensor got = fused_rms_norm(x, weight, 0.01F), wide = x.to(at::kDouble);
        CHECK((got.scalar_type() == to));
        const at::Tensor wanted =
            wide / (wide.square().mean(-1, true) + 0.01).sqrt() * weight.to(at::kDouble);
        REQUIRE(got.sizes() == x.sizes());
        CHECK(distance(got, wanted) < tolerance(to));
      }
}

TEST_CASE("fused_rms_norm accepts rows that are not contiguous, and no rows") {
  const at::Tensor x = at::randn({40, 30}), weight = at::ones({40});
  CHECK(fused_rms_norm(x.t(), weight, 0).equal(fused_rms_norm(x.t().contiguous(), weight, 0)));
  CHECK(fused_rms_norm(at::empty({0, 40}), weight, 0).sizes() == at::IntArrayRef({0, 40}));
}

TEST_CASE("fused_rotate rotates pairs and leaves the features behind them unchanged") {
  for (const at::ScalarType dtype : kTypes)
    for (const int64_t half : {1, 7, 16, 32})
      for (const bool interleaved : {false, true}) {
        CAPTURE(half);
        CAPTURE(interleaved);
        const int64_t tokens = 600;
        const at::Tensor x = at::randn({2, tokens, 3, 64}).to(dtype);
        const at::Tensor angles = at::randn({tokens + 5, half});
        const at::Tensor cos = angles.cos().to(dtype), sin = angles.sin().to(dtype);
        at::Tensor got = x.clone();
        fused_rotate(got, cos, sin, interleaved);
        const at::Tensor wide = x.to(at::kDouble).narrow(3, 0, 2 * half);
        const auto pairs = interleaved ? wide.unflatten(3, {half, 2}).unbind(4)
                                       : wide.unflatten(3, {2, half}).unbind(3);
        const auto table = [&](const at::Tensor& t) {
          return t.narrow(0, 0, tokens).to(at::kDouble).unsqueeze(1);
        };
        const std::vector<at::Tensor> turned{pairs[0] * table(cos) - pairs[1] * table(sin),
                                             pairs[1] * table(cos) + pairs[0] * table(sin)};
        const at::Tensor wanted = at::stack(turned, interleaved ? 4 : 3).flatten(3);
        CHECK(distance(got.narrow(3, 0, 2 * half), wanted) < tolerance(dtype));
        CHECK(got.narrow(3, 2 * half, 64 - 2 * half).equal(x.narrow(3, 2 * half, 64 - 2 * half)));
      }
}

TEST_CASE("fused_silu_times is silu(gate) up, also for large numbers") {
  for (const at::ScalarType dtype : kTypes)
    for (const double scale : {1.0, 30.0, 1e4}) {
      CAPTURE(scale);
      const at::Tensor x = (at::randn({900, 37}) * scale).to(dtype);
      const at::Tensor up = at::randn({900, 37}).to(dtype);
      at::Tensor got = x.clone();
      fused_silu_times(got, up);
      const at::Tensor wide = x.to(at::kDouble);
      const at::Tensor wanted = wide * wide.sigmoid() * up.to(at::kDouble);
      CHECK(got.isfinite().all().item<bool>());
      CHECK(distance(got, wanted) < tolerance(dtype));
    }
}

TEST_CASE("fused_add_rows adds rows to their places by their weights") {
  for (const at::ScalarType dtype : kTypes) {
    const at::Tensor y = at::randn({1000, 33}).to(dtype), weights = at::rand({1000});
    const at::Tensor rows = at::randperm(1200).narrow(0, 0, 1000), sums = at::randn({1200, 33});
    at::Tensor got = sums.clone();
    fused_add_rows(got, rows, weights, y);
    const at::Tensor wide = y.to(at::kDouble) * weights.to(at::kDouble).unsqueeze(1);
    const at::Tensor wanted = sums.to(at::kDouble).index_add(0, rows, wide);
    CHECK(distance(got, wanted) < 1e-6);
    fused_add_rows(got, rows.narrow(0, 0, 0), weights.narrow(0, 0, 0), y.narrow(0, 0, 0));
    CHECK(distance(got, wanted) < 1e-6);
  }
}

TEST_CASE("can_fuse() accepts CPU tensors of two types without gradients") {
  CHECK(can_fuse(at::ones({2})));
  CHECK_FALSE(can_fuse(at::ones({2}).requires_grad_()));
  CHECK_FALSE(can_fuse(at::ones({2}, at::kDouble)));
}

TEST_CASE("the results do not depend on the number of threads") {
  const at::Tensor x = at::randn({5000, 48}).to(at::kBFloat16),
                   weight = at::ones({48}).to(x.dtype());
  const auto run = [&] {
    at::Tensor y = fused_rms_norm(x, weight, 1e-5F);
    fused_silu_times(y, x);
    return y;
  };
  const at::Tensor many = run();
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  CHECK(run().equal(many));
  at::set_num_threads(threads);
}

}  // namespace aqhost
