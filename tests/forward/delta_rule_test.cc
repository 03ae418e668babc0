// The gated delta rule in chunks, compared with the recurrence that defines it, in float64.

#include "forward/delta_rule.h"

#include <vector>

#include "forward/distance.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

struct Inputs {
  at::Tensor q, k, v, beta, decay;

  std::vector<at::Tensor> all() const { return {q, k, v, beta, decay}; }
};

/// Two sequences, three heads of 8 for queries and keys and of 5 for values. Decays are around
/// `decay`.
Inputs random_inputs(int64_t tokens, double decay) {
  const auto unit = [](const at::Tensor& x) { return x / x.norm(2, {-1}, true); };
  return {unit(at::randn({2, tokens, 3, 8})), unit(at::randn({2, tokens, 3, 8})),
          at::randn({2, tokens, 3, 5}), at::rand({2, tokens, 3}),
          at::rand({2, tokens, 3}) * (2 * decay)};
}

Inputs as_double(const Inputs& in) {
  const auto wide = [](const at::Tensor& x) { return x.detach().to(at::kDouble); };
  return {wide(in.q), wide(in.k), wide(in.v), wide(in.beta), wide(in.decay)};
}

/// One token after another.
at::Tensor recurrence(const Inputs& in) {
  at::Tensor state =
      at::zeros({in.q.size(0), in.q.size(2), in.q.size(3), in.v.size(3)}, at::kDouble);
  std::vector<at::Tensor> outputs;
  for (int64_t t = 0; t < in.q.size(1); t++) {
    const at::Tensor q = in.q.select(1, t).unsqueeze(-1), k = in.k.select(1, t).unsqueeze(-1);
    const at::Tensor beta = in.beta.select(1, t).unsqueeze(-1);
    state = state * in.decay.select(1, t).exp().unsqueeze(-1).unsqueeze(-1);
    const at::Tensor recalled = (state * k).sum(2);
    state = state + k * (beta * (in.v.select(1, t) - recalled)).unsqueeze(2);
    outputs.push_back((state * q).sum(2));
  }
  return at::stack(outputs, 1);
}

at::Tensor in_chunks(const Inputs& in) {
  return gated_delta_rule(in.q, in.k, in.v, in.beta, in.decay);
}

}  // namespace

TEST_CASE("the gated delta rule in chunks is its recurrence, below, at and above whole chunks") {
  for (const int64_t tokens : {1, 2, 63, 64, 65, 128, 200})
    for (const double decay : {0.0, -0.02, -1.0, -40.0}) {
      CAPTURE(tokens);
      CAPTURE(decay);
      const Inputs in = random_inputs(tokens, decay);
      const at::Tensor got = in_chunks(in), wanted = recurrence(as_double(in));
      REQUIRE(got.sizes() == wanted.sizes());
      CHECK((got.scalar_type() == at::kFloat));
      // sums of large decays are less exact
      CHECK(distance(got, wanted) < (decay < -10 ? 5e-5 : 3e-6));
      for (const int64_t last : {int64_t{0}, tokens / 2, tokens - 1})  // small values count too
        CHECK(distance(got.select(1, last), wanted.select(1, last)) < 1e-4);
    }
}

TEST_CASE("a token does not change what comes before it, nor another head or sequence") {
  const Inputs in = random_inputs(130, -0.02);
  const at::Tensor before = in_chunks(in);
  for (const int64_t token : {0, 63, 64, 100}) {
    CAPTURE(token);
    Inputs changed = in;
    changed.v = in.v.clone();
    changed.v[1][token][2].add_(1);
    const at::Tensor difference = (in_chunks(changed) - before).abs();
    CHECK(difference[0].max().item<float>() == 0);
    CHECK(difference[1].narrow(1, 0, 2).max().item<float>() == 0);
    if (token > 0) CHECK(difference[1].narrow(0, 0, token).max().item<float>() == 0);
    CHECK(difference[1][token][2].max().item<float>() > 0);
    CHECK(difference[1][129][2].max().item<float>() > 0);
  }
}

TEST_CASE("the gradients of the gated delta rule are those of its recurrence") {
  for (const int64_t tokens : {1, 63, 64, 65, 200})
    for (const double decay : {-0.02, -1.0, -40.0}) {
      CAPTURE(tokens);
      CAPTURE(decay);
      const Inputs in = random_inputs(tokens, decay), wide = as_double(in);
      for (const Inputs* inputs : {&in, &wide})
        for (at::Tensor x : inputs->all()) x.requires_grad_();
      const at::Tensor direction = at::randn({2, tokens, 3, 5});
      (in_chunks(in) * direction).sum().backward();
      (recurrence(wide) * direction.to(at::kDouble)).sum().backward();
      const std::vector<at::Tensor> got = in.all(), wanted = wide.all();
      for (std::size_t i = 0; i < got.size(); i++) {
        CAPTURE(i);
        REQUIRE(got[i].grad().defined());
        CHECK(at::isfinite(got[i].grad()).all().item<bool>());
        // of a single token, the gradient of the decay is 0; sums of large decays are less exact
        const double size = wanted[i].grad().norm().item<double>();
        CHECK((got[i].grad().to(at::kDouble) - wanted[i].grad()).norm().item<double>() <=
              (decay < -10 ? 1e-3 : 1e-5) * size + 1e-9);
      }
    }
}

}  // namespace aqhost
