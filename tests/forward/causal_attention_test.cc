#include "forward/causal_attention.h"

#include <ATen/Parallel.h>

#include <limits>

#include "tensor/bfloat16_tile.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

struct Case {
  int64_t batch, heads, kv_heads, tokens, size, window;
};

struct Sample {
  at::Tensor q, k, v;

  explicit Sample(const Case& c)
      : q(random(c.batch, c.heads, c)),
        k(random(c.batch, c.kv_heads, c)),
        v(random(c.batch, c.kv_heads, c)) {}

  static at::Tensor random(int64_t batch, int64_t heads, const Case& c) {
    return at::randn({batch, c.tokens, heads, c.size}).to(at::kBFloat16);
  }
};

/// Attention in float64, as [batch, tokens, heads x size].
at::Tensor reference(const Case& c, const Sample& s, double scale) {
  const auto wide = [&](const at::Tensor& t) {
    return t.to(at::kDouble).transpose(1, 2).repeat_interleave(c.heads / t.size(2), 1);
  };
  const at::Tensor back = at::arange(c.tokens).unsqueeze(1) - at::arange(c.tokens);
  at::Tensor hidden = back < 0;
  if (c.window > 0) hidden = hidden | (back >= c.window);
  at::Tensor scores = at::matmul(wide(s.q), wide(s.k).transpose(2, 3)) * scale;
  scores.masked_fill_(hidden, -1e30);
  return at::matmul(scores.softmax(3), wide(s.v)).transpose(1, 2).flatten(2);
}

bool skipped() {
  if (has_bfloat16_products()) return false;
  MESSAGE("SKIPPED: this CPU has no AVX512-BF16");
  return true;
}

}  // namespace

TEST_CASE("bfloat16 attention differs from float64 only by the rounding of shares and results") {
  if (skipped()) return;
  // sizes below, at and above tiles; heads that share keys; windows within and across tiles
  for (const Case& c :
       {Case{2, 4, 4, 512, 32, 0}, Case{1, 1, 1, 1, 2, 0}, Case{3, 2, 1, 63, 16, 0},
        Case{1, 4, 2, 65, 64, 0}, Case{1, 2, 2, 130, 80, 0}, Case{1, 2, 1, 200, 128, 0},
        Case{1, 2, 2, 300, 48, 1}, Case{1, 2, 2, 300, 32, 70}, Case{1, 1, 1, 129, 6, 64}}) {
    CAPTURE(c.tokens);
    CAPTURE(c.size);
    CAPTURE(c.window);
    const Sample s(c);
    REQUIRE(has_causal_attention(s.q));
    for (const double scale : {0.05, 1.0}) {
      const at::Tensor got = causal_attention(s.q, s.k, s.v, scale, c.window).to(at::kDouble);
      const at::Tensor wanted = reference(c, s, scale);
      REQUIRE(got.sizes() == wanted.sizes());
      CHECK(((got - wanted).norm() / wanted.norm()).item<double>() < 4e-3);
    }
  }
}

TEST_CASE("a NaN in a key reaches every token that sees the key, and no other") {
  if (skipped()) return;
  const Case c{1, 2, 2, 150, 32, 0};
  Sample s(c);
  s.k[0][70].fill_(std::numeric_limits<float>::quiet_NaN());
  const at::Tensor got = causal_attention(s.q, s.k, s.v, 0.2, 0)[0];
  CHECK(at::isfinite(got.narrow(0, 0, 70)).all().item<bool>());
  CHECK(at::isnan(got.narrow(0, 70, 80)).all().item<bool>());
}

TEST_CASE("with large scores the largest takes all, on any number of threads") {
  if (skipped()) return;
  const Case c{2, 3, 3, 100, 32, 0};
  Sample s(c);
  s.q.mul_(1000);
  const at::Tensor many = causal_attention(s.q, s.k, s.v, 1, 0);
  CHECK(many.isfinite().all().item<bool>());
  CHECK(((many.to(at::kDouble) - reference(c, s, 1)).abs().max()).item<double>() < 0.05);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  CHECK(causal_attention(s.q, s.k, s.v, 1, 0).equal(many));
  at::set_num_threads(threads);
}

}  // namespace aqhost
