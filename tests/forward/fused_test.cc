#include "forward/fused.h"

#include <ATen/Parallel.h>

#include "distance.h"
#include "torch_doctest.h"

// Each against its definition in float64. Sizes below, at and beyond what is worked on at once;
// enough rows for several threads.

namespace aqhost {
namespace {

constexpr at::ScalarType kTypes[] = {at::kFloat, at::kBFloat16};

double most(at::ScalarType dtype) { return dtype == at::kFloat ? 1e-6 : 4e-3; }

}  // namespace

TEST_CASE("RMS norm in one pass") {
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
        CHECK(distance(got, wanted) < most(to));
      }
}

TEST_CASE("RMS norm of other than contiguous rows, and of none") {
  const at::Tensor x = at::randn({40, 30}), weight = at::ones({40});
  CHECK(fused_rms_norm(x.t(), weight, 0).equal(fused_rms_norm(x.t().contiguous(), weight, 0)));
  CHECK(fused_rms_norm(at::empty({0, 40}), weight, 0).sizes() == at::IntArrayRef({0, 40}));
}

TEST_CASE("rotary embedding in one pass turns pairs, and leaves what is behind them") {
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
        CHECK(distance(got.narrow(3, 0, 2 * half), wanted) < most(dtype));
        CHECK(got.narrow(3, 2 * half, 64 - 2 * half).equal(x.narrow(3, 2 * half, 64 - 2 * half)));
      }
}

TEST_CASE("silu times another in one pass, also of large numbers") {
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
      CHECK(distance(got, wanted) < most(dtype));
    }
}

TEST_CASE("rows are added up where they belong, by their weights") {
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

TEST_CASE("one pass is for CPUs, two types and no gradients") {
  CHECK(can_fuse(at::ones({2})));
  CHECK_FALSE(can_fuse(at::ones({2}).requires_grad_()));
  CHECK_FALSE(can_fuse(at::ones({2}, at::kDouble)));
}

TEST_CASE("threads do not matter") {
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
