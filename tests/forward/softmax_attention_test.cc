// Softmax attention, compared with a softmax over scores that are written out, in float64.

#include "forward/softmax_attention.h"

#include "forward/distance.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

struct Shape {
  int64_t tokens, heads, kv_heads, size, value_size, window;
};

struct Heads {
  at::Tensor q, k, v, sinks;

  Heads(const Shape& s, at::ScalarType type, bool with_sinks) {
    const auto random = [&](int64_t heads, int64_t size) {
      return at::randn({2, s.tokens, heads, size}).to(type);
    };
    q = random(s.heads, s.size);
    k = random(s.kv_heads, s.size);
    v = random(s.kv_heads, s.value_size);
    if (with_sinks) sinks = at::randn({s.heads}) * 3;
  }
};

at::Tensor written_out(const Heads& in, double scale, int64_t window) {
  const int64_t tokens = in.q.size(1), heads = in.q.size(2);
  const auto wide = [&](const at::Tensor& x) {
    return x.to(at::kDouble).repeat_interleave(heads / x.size(2), 2).transpose(1, 2);
  };
  const at::Tensor back = at::arange(tokens).unsqueeze(1) - at::arange(tokens);
  at::Tensor scores = wide(in.q).matmul(wide(in.k).transpose(2, 3)) * scale;
  scores = scores.masked_fill(back < 0, -1e300);
  if (window > 0) scores = scores.masked_fill(back >= window, -1e300);
  if (in.sinks.defined())
    scores = at::cat(
        {scores, in.sinks.to(at::kDouble).view({1, heads, 1, 1}).expand({2, heads, tokens, 1})}, 3);
  const at::Tensor shares = scores.softmax(3).narrow(3, 0, tokens);
  return shares.matmul(wide(in.v)).transpose(1, 2).flatten(2);
}

}  // namespace

TEST_CASE("softmax attention with and without sinks is the softmax over scores written out") {
  for (const Shape& s :
       {Shape{1, 4, 4, 16, 16, 0}, Shape{37, 4, 2, 16, 16, 0}, Shape{37, 4, 1, 16, 16, 9},
        Shape{37, 4, 4, 16, 8, 0}, Shape{37, 4, 2, 16, 24, 5}, Shape{37, 4, 2, 16, 16, 37},
        Shape{37, 4, 2, 14, 10, 1}, Shape{130, 6, 3, 24, 40, 0}, Shape{130, 6, 3, 40, 24, 70},
        Shape{37, 2, 2, 7, 5, 4}})
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
      for (const bool sinks : {false, true})
        for (const double scale : {0.05, 0.4}) {
          CAPTURE(s.tokens);
          CAPTURE(s.size);
          CAPTURE(s.value_size);
          CAPTURE(s.window);
          CAPTURE(sinks);
          CAPTURE(scale);
          CAPTURE((type == at::kFloat));
          const Heads in(s, type, sinks);
          const at::Tensor got = softmax_attention(in.q, in.k, in.v, scale, s.window, in.sinks);
          const at::Tensor wanted = written_out(in, scale, s.window);
          REQUIRE(got.sizes() == wanted.sizes());
          CHECK((got.scalar_type() == type));
          CHECK(distance(got, wanted) < (type == at::kFloat ? 2e-6 : 6e-3));
        }
}

TEST_CASE("a sink that is far below takes nothing, and one that is far above takes all") {
  Heads in({37, 4, 2, 16, 16, 0}, at::kFloat, true);
  const at::Tensor without = softmax_attention(in.q, in.k, in.v, 0.3, 0);
  const auto with = [&](double sink) {
    return softmax_attention(in.q, in.k, in.v, 0.3, 0, at::full({4}, sink));
  };
  CHECK(distance(with(-100), without) < 1e-6);
  CHECK(distance(with(0), without) > 0.02);
  CHECK(with(100).abs().max().item<float>() < 1e-20);
}

TEST_CASE("in bfloat16 the score of a sink is more exact than a bfloat16 number") {
  Heads in({3, 2, 2, 16, 16, 0}, at::kBFloat16, true);
  in.q.fill_(1);
  in.k.fill_(2.5);
  in.v.fill_(1);
  in.sinks.fill_(40.1);  // all other scores are 40; the bfloat16 numbers there are 0.25 apart
  CHECK(distance(softmax_attention(in.q, in.k, in.v, 1, 0, in.sinks), written_out(in, 1, 0)) <
        6e-3);
}

TEST_CASE("the gradients of softmax attention with sinks are those of the softmax written out") {
  for (const int64_t window : {0, 9}) {
    const Heads in({37, 4, 2, 16, 12, window}, at::kFloat, true);
    Heads wide = in;
    for (at::Tensor* x : {&wide.q, &wide.k, &wide.v}) *x = x->to(at::kDouble).requires_grad_();
    for (at::Tensor x : {in.q, in.k, in.v}) x.requires_grad_();
    const at::Tensor direction = at::randn({2, 37, 48});
    (softmax_attention(in.q, in.k, in.v, 0.3, window, in.sinks) * direction).sum().backward();
    (written_out(wide, 0.3, window) * direction.to(at::kDouble)).sum().backward();
    CHECK(distance(in.q.grad(), wide.q.grad()) < 1e-5);
    CHECK(distance(in.k.grad(), wide.k.grad()) < 1e-5);
    CHECK(distance(in.v.grad(), wide.v.grad()) < 1e-5);
  }
}

}  // namespace aqhost
