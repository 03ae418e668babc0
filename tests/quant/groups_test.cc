#include "quant/groups.h"

#include <ATen/Parallel.h>

#include "quant/formats.h"
#include "quant/problem.h"
#include "quant/quantize.h"
#include "quant/reference.h"
#include "tensor/tensor.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

/// Checks that codes, parameters and values of every matrix equal those of the contract to the bit.
void check_rtn(const Format& format, int64_t rows, int64_t cols, bool with_hessian) {
  CAPTURE(rows);
  CAPTURE(cols);
  CAPTURE(with_hessian);
  const Problem problem(3, rows, cols, 5);
  const at::Tensor hessians = with_hessian ? problem.hessians : at::Tensor();
  const QuantizedBatch batch = quantize_rtn(format, problem.weights, hessians, {});
  for (int64_t e = 0; e < 3; e++) {
    at::Tensor importance = at::empty({0});
    if (with_hessian) {
      importance = problem.hessians[e].diagonal();
      importance = importance + importance.mean() * GptqOptions().percdamp;
    }
    const ReferenceResult expected = reference_rtn(
        format.desc(), span_of<float>(problem.weights[e]), cols, span_of<float>(importance));
    const QuantizedMatrix found = batch.matrix(e, 0, rows);
    CHECK(found.group_params == expected.params);
    int64_t different = 0;
    for (std::size_t i = 0; i < expected.codes.size(); i++)
      different += std::to_integer<uint32_t>(found.codes[i]) != expected.codes[i] ? 1 : 0;
    CHECK(different == 0);
    CHECK(at::tensor(format.dequantize(found)).equal(batch.values[e].flatten()));
  }
}

}  // namespace

TEST_CASE("rounding to nearest is what aq/quantizer.h says, to the bit, for every kind of format") {
  const Json asymmetric{{"group_size", 32}, {"symmetric", false}};
  for (const bool with_hessian : {false, true}) {
    check_rtn(*int_format(4, {{"group_size", -1}}), 7, 96, with_hessian);
    check_rtn(*int_format(4, {{"group_size", 32}, {"scale_rule", "absmax"}}), 7, 96, with_hessian);
    check_rtn(*int_format(4, asymmetric), 5, 100, with_hessian);
    check_rtn(*int_format(8, asymmetric), 5, 64, with_hessian);
    check_rtn(*int_format(2, {{"group_size", 16}, {"scale_dtype", "float16"}}), 3, 64,
              with_hessian);
    check_rtn(*fp4_format("mx", 32), 7, 80, with_hessian);
    check_rtn(*fp4_format("nv", 16), 7, 80, with_hessian);
    for (const int bits : {2, 3, 4}) check_rtn(*two_level_format(bits), 7, 136, with_hessian);
  }
}

TEST_CASE("without a Hessian, large weights count more in the search of a scale") {
  // Of 64 weights, one is 1 and the others are 0.1 or so. A scale for 1 rounds many of the others
  // badly, and a scale for the others makes 1 much smaller.
  const std::shared_ptr<const Format> format = int_format(4, {{"group_size", 64}});
  at::Tensor weights = Problem(1, 16, 64, 11).weights * 0.1;
  weights.select(2, 7).fill_(1);
  const auto largest_error = [&](const at::Tensor& hessians) {
    const QuantizedBatch batch = quantize_rtn(*format, weights, hessians, {});
    return (batch.values - weights).select(2, 7).abs().mean().item<double>();
  };
  CHECK(largest_error({}) < 0.5 * largest_error(at::eye(64).unsqueeze(0)));
}

TEST_CASE("no candidate that is the best is left out, whatever the weights") {
  constexpr int64_t kRows = 15, kCols = 128;
  const Problem problem(1, kRows, kCols, 7);
  const at::Tensor random = problem.weights[0], grid = (random * 3).round();
  const at::Tensor outlier = random.clone();
  outlier.select(1, 5).mul_(1e4);
  const std::vector<at::Tensor> kinds{
      random,
      random * 1e-18,  // squares vanish
      random * 1e-30,  // squares of ratios vanish too
      random * 1e17,   // squares are infinite
      random * 1e30,
      grid,         // all errors are 0 for some scales
      grid * 0.07,  // all errors are nearly 0 for some scales
      outlier,        at::ones_like(random), random.masked_fill(random < 1, 0)};
  const std::shared_ptr<const Format> formats[] = {
      int_format(4, {{"group_size", 128}}), int_format(8, {{"group_size", 32}}),
      int_format(3, {{"group_size", 128}, {"symmetric", false}}), fp4_format("mx", 32),
      fp4_format("nv", 16)};
  for (const auto& format : formats)
    for (const at::Tensor& weights : kinds)
      for (const double importance : {0.0, 1e-25, 1.0, 1e20}) {
        CAPTURE(weights.abs().max().item<float>());
        CAPTURE(importance);
        const at::Tensor w = weights.contiguous(), h = at::rand({kCols}) * importance;
        const at::Tensor all = fit_tensors(*format, w.unsqueeze(0), {});
        const at::Tensor found = fit_groups(*format, w.unsqueeze(0), h.unsqueeze(0), all);
        const ReferenceResult expected =
            reference_rtn(format->desc(), span_of<float>(w), kCols, span_of<float>(h));
        CHECK(at::tensor(expected.params).equal(found.flatten()));
      }
}

TEST_CASE("rounding through a plugin's callbacks gives the same bits as the host's own") {
  for (const bool symmetric : {true, false}) {
    const Json options{{"group_size", 32}, {"symmetric", symmetric}};
    const Problem problem(2, 9, 96, 6);
    const QuantizedBatch own =
        quantize_rtn(*int_format(4, options), problem.weights, problem.hessians, {});
    const QuantizedBatch asked =
        quantize_rtn(*int_format_by_callbacks(4, options), problem.weights, problem.hessians, {});
    CHECK(own.codes.equal(asked.codes));
    CHECK(own.params.equal(asked.params));
    CHECK(own.values.equal(asked.values));
    CHECK(own.loss.equal(asked.loss));
  }
}

TEST_CASE("one scale for a whole matrix is the plugin's to the bit, for any number of threads") {
  constexpr int64_t kRows = 37, kCols = 96;
  const Problem problem(1, kRows, kCols, 9);
  const at::Tensor random = problem.weights[0], grid = (random * 3).round();
  at::Tensor half = random.clone();
  half.narrow(0, 20, 17).zero_();
  const std::vector<at::Tensor> kinds{random,        random * 1e-30, random * 1e25,         grid,
                                      grid * 0.0625, half,           at::zeros_like(random)};
  const std::shared_ptr<const Format> formats[] = {
      int_format(8, {{"group_size", 0}, {"activations", "int8"}}), fp4_format("f32", 0),
      fp4_format("mx", 0)};
  const int before = at::get_num_threads();
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    for (const auto& format : formats)
      for (const at::Tensor& kind : kinds)
        for (const double importance : {0.0, -1.0, 1.0, 1e20}) {  // -1: no importance is given
          CAPTURE(kind.abs().max().item<float>());
          CAPTURE(importance);
          const at::Tensor w = kind.contiguous();
          const at::Tensor h = importance < 0 ? at::Tensor() : at::rand({1, kCols}) * importance;
          std::vector<float> expected(kRows);
          format->fit(span_of<float>(w), kRows, kCols,
                      h.defined() ? span_of<float>(h[0]) : std::span<float>(), {}, expected);
          const at::Tensor found = fit_groups(*format, w.unsqueeze(0), h, at::empty({1, 0}));
          CHECK(at::tensor(expected).equal(found.flatten()));
        }
  }
  at::set_num_threads(before);
}

TEST_CASE("a matrix of zeros rounds to zeros with scale 1") {
  for (const auto& format : {int_format(4, {{"group_size", 16}}), fp4_format("nv", 16)}) {
    const QuantizedBatch batch = quantize_rtn(*format, at::zeros({1, 2, 32}), {}, {});
    CHECK(batch.values.abs().max().item<float>() == 0);
    CHECK(batch.params.eq(1).all().item<bool>());
  }
}

}  // namespace aqhost
