#include "quant/formats.h"
#include "quant/gptq.h"
#include "quant/problem.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

/// Inputs of the original model and, a little off, of the quantized one.
struct Inputs {
  at::Tensor original, x, hessian, shift;

  explicit Inputs(uint64_t seed) {
    auto random = at::detail::createCPUGenerator(seed);
    const at::Tensor mix = at::randn({48, 48}, random).mul_(0.3).add_(at::eye(48));
    original = at::randn({1000, 48}, random).matmul(mix);
    x = original + original.matmul(at::randn({48, 48}, random)) * 0.02 +
        at::randn({1000, 48}, random) * 0.05;
    hessian = x.t().matmul(x);
    shift = (original - x).t().matmul(x);
  }
};

}  // namespace

TEST_CASE("a shift is made up for: the weights are those that give the original's output") {
  const Inputs in(3);
  const at::Tensor weights = Problem(1, 20, 48, 4).weights[0];
  const auto format = int_format(8, {{"group_size", 16}});  // fine enough to see the target
  GptqOptions options;
  options.percdamp = 1e-3;
  const auto solve = [&](double feedback) {
    options.feedback = feedback;
    return quantize_gptq(*format, weights.unsqueeze(0), in.hessian.unsqueeze(0), options,
                         in.shift.unsqueeze(0))
        .values[0];
  };
  at::Tensor h = in.hessian.to(at::kDouble).clone();
  h.diagonal().add_(h.diagonal().mean().item<double>() * options.percdamp);
  const at::Tensor change =
      weights.to(at::kDouble).matmul(in.shift.to(at::kDouble)).matmul(at::linalg_inv(h));
  for (const double feedback : {0.0, 0.5, 1.0}) {
    const at::Tensor expected = weights + change * feedback;
    CHECK(((solve(feedback) - expected).norm() / change.norm()).item<double>() < 0.1);
  }
  const auto output_error = [&](double feedback) {
    return (in.original.matmul(weights.t()) - in.x.matmul(solve(feedback).t()))
        .norm()
        .item<double>();
  };
  CHECK(output_error(1) < 0.9 * output_error(0));
}

TEST_CASE("a matrix that is only rounded is not shifted") {
  const Inputs in(5);
  at::Tensor hessian = in.hessian.clone();
  hessian[3][4] = hessian[4][3] = hessian.diagonal().mean() * 1000;
  const at::Tensor weights = Problem(1, 20, 48, 6).weights;
  const auto format = int_format(4, {{"group_size", 16}});
  GptqOptions options;
  options.percdamp = 0.01;
  const QuantizedBatch solved =
      quantize_gptq(*format, weights, hessian.unsqueeze(0), options, in.shift.unsqueeze(0));
  CHECK(solved.rtn[0]);
  CHECK(solved.codes.equal(quantize_rtn(*format, weights, hessian.unsqueeze(0), options).codes));
}

}  // namespace aqhost
