#include <algorithm>
#include <aq/sdk/two_level.hpp>

#include "quant/formats.h"
#include "quant/problem.h"
#include "quant/quantize.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

GptqOptions with_sweeps(int sweeps) {
  GptqOptions options;
  options.percdamp = 0.01;
  options.sweeps = sweeps;
  return options;
}

/// Formats with one scale for a whole matrix.
std::vector<std::unique_ptr<const Format>> formats_of_whole_matrices() {
  std::vector<std::unique_ptr<const Format>> all;
  all.push_back(int_format(8, {{"group_size", 0}, {"activations", "int8"}}));
  all.push_back(fp4_format("f32", 0));
  all.push_back(fp4_format("mx", 0));
  return all;
}

std::vector<std::unique_ptr<const Format>> formats() {
  std::vector<std::unique_ptr<const Format>> all;
  for (const int32_t group_size : {-1, 16, 256})
    for (const bool symmetric : {true, false})
      all.push_back(int_format(3, {{"group_size", group_size}, {"symmetric", symmetric}}));
  all.push_back(fp4_format("mx", 32));
  all.push_back(fp4_format("nv", 16));
  for (const int bits : {2, 3, 4}) all.push_back(two_level_format(bits));
  for (auto& format : formats_of_whole_matrices()) all.push_back(std::move(format));
  return all;
}

}  // namespace

TEST_CASE(
    "a sweep lowers the loss, in no row raises it, and leaves values that the codes stand for") {
  const Problem problem(2, 70, 272, 1);
  for (const auto& format : formats()) {
    CAPTURE(format->desc().group_size);
    const QuantizedBatch solved =
        quantize_gptq(*format, problem.weights, problem.hessians, with_sweeps(0));
    const QuantizedBatch swept =
        quantize_gptq(*format, problem.weights, problem.hessians, with_sweeps(1));
    CHECK((swept.loss - solved.loss * (1 + 1e-4)).max().item<double>() < 0);
    CHECK(swept.loss.sum().item<double>() < 0.98 * solved.loss.sum().item<double>());
    CHECK(swept.rtn_loss.equal(solved.rtn_loss));
    for (int64_t e = 0; e < 2; e++)
      CHECK(
          at::tensor(format->dequantize(swept.matrix(e, 0, 70))).equal(swept.values[e].flatten()));
  }
}

TEST_CASE("a format with one scale per matrix has the same scale in every row after GPTQ") {
  const Problem problem(2, 70, 272, 3);
  for (const auto& format : formats_of_whole_matrices())
    for (const bool actorder : {true, false}) {
      GptqOptions options = with_sweeps(2);
      options.actorder = actorder;
      const QuantizedBatch swept =
          quantize_gptq(*format, problem.weights, problem.hessians, options);
      REQUIRE(swept.params.size(2) == 1);
      for (int64_t e = 0; e < 2; e++)
        CHECK(swept.params[e].eq(swept.params[e][0][0][0]).all().item<bool>());
    }
}

TEST_CASE(
    "sweeps leave two-level scales and minima on their lattice, and d and dmin as they were") {
  const Problem problem(1, 70, 272, 4);
  for (const int bits : {2, 3, 4}) {
    const auto format = two_level_format(bits);
    const aq::TwoLevelFit lattice(format->desc());
    const at::Tensor before =
        quantize_gptq(*format, problem.weights, problem.hessians, with_sweeps(0)).params;
    const at::Tensor after =
        quantize_gptq(*format, problem.weights, problem.hessians, with_sweeps(2)).params;
    CHECK(before.narrow(3, 2, 2).equal(after.narrow(3, 2, 2)));
    CHECK_FALSE(before.select(3, 0).equal(after.select(3, 0)));
    CHECK(before.select(3, 1).equal(after.select(3, 1)) == (bits == 3));  // which has no minima
    const float* p = after.data_ptr<float>();
    for (int64_t i = 0; i < after.numel(); i += 4) {
      const aq::TwoLevelParams group{p[i], p[i + 1], p[i + 2], p[i + 3]};
      CHECK(group.scale == static_cast<float>(lattice.k_of(group)) * group.d);
      CHECK(group.minimum == static_cast<float>(lattice.m_of(group)) * group.dmin);
    }
  }
}

TEST_CASE("where sweeps end no other code of any one weight has a smaller loss") {
  const Problem problem(1, 5, 32, 2);
  at::Tensor h = problem.hessians[0].to(at::kDouble).clone();
  h.diagonal().add_(h.diagonal().mean().item<double>() * 0.01);
  for (const char* scales : {"mx", "nv"}) {
    const auto format = fp4_format(scales, 16 * (scales[0] == 'm' ? 2 : 1));
    const QuantizedBatch swept =
        quantize_gptq(*format, problem.weights, problem.hessians, with_sweeps(40));
    const auto loss = [&](const at::Tensor& values) {
      const at::Tensor d = (values - problem.weights[0]).to(at::kDouble);
      return d.matmul(h).mul(d).sum(1) / 2;
    };
    const at::Tensor least = loss(swept.values[0]);
    CHECK(at::allclose(least, swept.loss[0], 1e-3));
    QuantizedMatrix matrix = swept.matrix(0, 0, 5);
    for (std::size_t column = 0; column < 32; column++)
      for (uint8_t code = 0; code < 16; code++) {
        QuantizedMatrix other = matrix;
        for (std::size_t row = 0; row < 5; row++)
          other.codes[row * 32 + column] = static_cast<std::byte>(code);
        const at::Tensor values = at::tensor(format->dequantize(other)).view({5, 32});
        CHECK((loss(values) - least * (1 - 1e-4)).min().item<double>() > 0);
      }
  }
}

}  // namespace aqhost
