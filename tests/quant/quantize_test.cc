#include "quant/quantize.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "base/error.h"
#include "quant/factor.h"
#include "quant/formats.h"
#include "quant/problem.h"
#include "quant/reference.h"
#include "tensor/tensor.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

constexpr double kTie = 1e-3;  // distance of w / step from a tie below which float32 may round the
                               // other way
constexpr double kLoss = 1e-4;
constexpr double kTieLoss = 1.5;  // maximum loss of a row that left the reference at a tie,
                                  // relative to the reference's loss

/// The number of rows among `rows` that may differ from the reference, because ties are rare.
int64_t most_ties(int64_t rows) { return 1 + rows / 50; }

/// Options for GPTQ without sweeps.
GptqOptions plain(bool actorder = true, int64_t block = 128) {
  GptqOptions options;
  options.percdamp = 0.01;
  options.actorder = actorder;
  options.block = block;
  options.sweeps = 0;
  return options;
}

/// The number of rows of matrix e that equal the reference. A row may differ in its parameters, or
/// from the first code on that lies on a tie; its loss is then about that of the reference.
int64_t equal_rows(const QuantizedBatch& batch, int64_t e, const ReferenceResult& expected) {
  const int64_t rows = batch.values.size(1), cols = batch.values.size(2);
  const QuantizedMatrix found = batch.matrix(e, 0, rows);
  const std::size_t params = found.group_params.size() / static_cast<std::size_t>(rows);
  int64_t equal = 0;
  for (int64_t r = 0; r < rows; r++) {
    const double loss = batch.loss[e][r].item<double>();
    const double reference = expected.row_loss[static_cast<std::size_t>(r)];
    CHECK(loss <= kTieLoss * reference);
    const auto first = static_cast<std::ptrdiff_t>(params) * r;
    if (!std::equal(expected.params.begin() + first,
                    expected.params.begin() + first + static_cast<std::ptrdiff_t>(params),
                    found.group_params.begin() + first))
      continue;
    bool same = true;
    for (const int64_t column : expected.order) {
      const auto i = static_cast<std::size_t>(r * cols + column);
      if (std::to_integer<uint32_t>(found.codes[i]) == expected.codes[i]) continue;
      same = false;
      CAPTURE(r);
      CAPTURE(column);
      CHECK(expected.margin[i] < kTie);
      break;
    }
    if (!same) continue;
    equal++;
    CHECK(loss == doctest::Approx(reference).epsilon(kLoss));
  }
  return equal;
}

void check_gptq(const Format& format, const Problem& problem, const GptqOptions& options) {
  const QuantizedBatch batch = quantize_gptq(format, problem.weights, problem.hessians, options);
  const int64_t count = problem.weights.size(0), rows = problem.weights.size(1);
  int64_t equal = 0;
  for (int64_t e = 0; e < count; e++) {
    const ReferenceResult expected =
        reference_gptq(format.desc(), span_of<float>(problem.weights[e]), problem.weights.size(2),
                       span_of<float>(problem.hessians[e]), options);
    CHECK(batch.rtn[static_cast<std::size_t>(e)] == expected.failed);
    if (!expected.failed) equal += equal_rows(batch, e, expected);
  }
  CHECK(equal >= count * rows - most_ties(count * rows));
}

/// 1/2 d H d^T of each row, with d = w - q and H with the initial damping.
at::Tensor losses_of(const Problem& problem, const QuantizedBatch& batch, double percdamp) {
  const at::Tensor d = (problem.weights - batch.values).to(at::kDouble);
  at::Tensor h = problem.hessians.to(at::kDouble).clone();
  const at::Tensor mean = h.diagonal(0, 1, 2).mean(1, true);
  h.diagonal(0, 1, 2).add_(mean * percdamp);
  return d.matmul(h).mul(d).sum(2) / 2;
}

/// The inputs of a module in the original model, and slightly different ones in the quantized
/// model.
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

TEST_CASE("GPTQ equals the float64 reference, with and without act-order, for all group sizes") {
  for (const bool actorder : {true, false})
    for (const int32_t group_size : {-1, 32, 128})
      for (const bool symmetric : {true, false}) {
        CAPTURE(actorder);
        CAPTURE(group_size);
        CAPTURE(symmetric);
        const auto format = int_format(4, {{"group_size", group_size}, {"symmetric", symmetric}});
        check_gptq(*format, Problem(2, 13, 160, 1), plain(actorder));
      }
}

TEST_CASE("GPTQ equals the reference for odd shapes, many experts and any block size") {
  const auto format = int_format(4, {{"group_size", 16}});
  check_gptq(*format, Problem(9, 1, 16, 2), plain());
  check_gptq(*format, Problem(3, 65, 48, 3), plain());
  for (const int64_t block : {16, 24, 64, 1000})
    for (const bool actorder : {true, false})
      check_gptq(*format, Problem(1, 67, 112, 4), plain(actorder, block));
}

TEST_CASE("GPTQ equals the reference for table formats, with shared and global scales") {
  for (const bool actorder : {true, false}) {
    check_gptq(*fp4_format("mx", 32), Problem(2, 21, 96, 7), plain(actorder));
    check_gptq(*fp4_format("nv", 16), Problem(2, 21, 96, 8), plain(actorder));
  }
}

TEST_CASE("GPTQ equals the reference for two-level scales, with super-groups that are cut off") {
  for (const int bits : {2, 3, 4})
    for (const bool actorder : {true, false})
      for (const int64_t block : {8, 128}) {
        CAPTURE(bits);
        CAPTURE(actorder);
        check_gptq(*two_level_format(bits), Problem(2, 67, 168, 17), plain(actorder, block));
      }
}

TEST_CASE("GPTQ through callbacks equals the reference") {
  for (const bool actorder : {true, false}) {
    const Problem problem(2, 11, 96, 9);
    const Json options{{"group_size", 32}, {"symmetric", false}};
    const GptqOptions gptq = plain(actorder);
    const auto described = int_format(4, options), asked = int_format_by_callbacks(4, options);
    const QuantizedBatch batch = quantize_gptq(*asked, problem.weights, problem.hessians, gptq);
    int64_t equal = 0;
    for (int64_t e = 0; e < 2; e++)
      equal += equal_rows(batch, e,
                          reference_gptq(described->desc(), span_of<float>(problem.weights[e]), 96,
                                         span_of<float>(problem.hessians[e]), gptq));
    CHECK(equal >= 2 * 11 - most_ties(2 * 11));
  }
}

TEST_CASE("the loss reported is half d H d^T, and less than rounding's") {
  const Problem problem(2, 12, 96, 10);
  for (const auto& format : {int_format(4, {{"group_size", 32}}), fp4_format("mx", 32),
                             int_format_by_callbacks(3, {{"group_size", 32}}), pair_format()}) {
    GptqOptions options = plain();
    const QuantizedBatch rounded =
        quantize_rtn(*format, problem.weights, problem.hessians, options);
    options.sweeps = 2;
    const QuantizedBatch solved =
        quantize_gptq(*format, problem.weights, problem.hessians, options);
    const at::Tensor expected = losses_of(problem, solved, 0.01);
    CHECK(at::allclose(solved.loss, expected, 1e-3, 1e-9));
    CHECK(at::allclose(solved.rtn_loss, losses_of(problem, rounded, 0.01), 1e-3, 1e-9));
    CHECK(solved.rtn_loss.equal(rounded.loss));
    CHECK(solved.loss.sum().item<double>() < 0.8 * rounded.loss.sum().item<double>());
  }
}

TEST_CASE("dead columns are rounded as they are") {
  Problem problem(2, 10, 64, 11);
  for (const int64_t column : {0, 17, 63}) {
    problem.hessians.select(1, column).zero_();
    problem.hessians.select(2, column).zero_();
  }
  const auto format = int_format(4, {{"group_size", 32}});
  check_gptq(*format, problem, plain());
  const QuantizedBatch solved = quantize_gptq(*format, problem.weights, problem.hessians, plain());
  const QuantizedBatch rounded = quantize_rtn(*format, problem.weights, problem.hessians, plain());
  CHECK(solved.codes.select(2, 17).equal(rounded.codes.select(2, 17)));
}

TEST_CASE("a singular Hessian is damped until it can be solved") {
  const Problem problem(2, 10, 64, 12, /*tokens=*/8);  // their Hessians have rank 8
  const auto format = int_format(4, {{"group_size", 32}});
  check_gptq(*format, problem, plain());
  // a negative eigenvalue that becomes positive only with a hundred times the damping
  Problem indefinite(1, 10, 64, 12);
  const double mean = indefinite.hessians.diagonal(0, 1, 2).mean().item<double>();
  indefinite.hessians[0] = at::eye(64) * mean;
  indefinite.hessians[0][3][4] = indefinite.hessians[0][4][3] = mean * 1.5;
  check_gptq(*format, indefinite, plain());
  const QuantizedBatch solved =
      quantize_gptq(*format, indefinite.weights, indefinite.hessians, plain());
  CHECK_FALSE(solved.rtn[0]);
}

TEST_CASE("a Hessian that no damping helps is rounded to nearest, alone, and said so") {
  Problem problem(3, 10, 64, 13);
  const double mean = problem.hessians[1].diagonal().mean().item<double>();
  problem.hessians[1][3][4] = problem.hessians[1][4][3] = mean * 100;
  const auto format = int_format(4, {{"group_size", 32}});
  const QuantizedBatch solved = quantize_gptq(*format, problem.weights, problem.hessians, plain());
  CHECK(solved.rtn == std::vector<bool>{false, true, false});
  const QuantizedBatch rounded = quantize_rtn(*format, problem.weights, problem.hessians, plain());
  CHECK(solved.codes[1].equal(rounded.codes[1]));
  CHECK(solved.values[1].equal(rounded.values[1]));
  CHECK_FALSE(solved.codes[0].equal(rounded.codes[0]));
}

TEST_CASE("a Hessian that is not finite is an error") {
  Problem problem(2, 4, 32, 14);
  problem.hessians[1][5][6] = std::numeric_limits<float>::quiet_NaN();
  const auto format = int_format(4, {{"group_size", 32}});
  const auto names_matrix_1 = [](const auto& quantize) {
    try {
      quantize();
      return false;
    } catch (const NotFinite& e) {
      CHECK(std::string(e.what()).find("a Hessian is not finite") == 0);
      return e.matrix() == 1;
    }
  };
  const at::Tensor good = Problem(2, 4, 32, 15).hessians;
  CHECK(
      names_matrix_1([&] { quantize_gptq(*format, problem.weights, problem.hessians, plain()); }));
  CHECK(names_matrix_1([&] { quantize_rtn(*format, problem.weights, problem.hessians, plain()); }));
  CHECK(names_matrix_1(
      [&] { quantize_gptq(*format, problem.weights, good, plain(), problem.hessians); }));
}

TEST_CASE("one thread count gives the same bytes every time, and any gives the reference's") {
  const Problem problem(5, 70, 96, 15);
  const auto format = int_format(4, {{"group_size", 32}});
  const int before = at::get_num_threads();
  for (const int threads : {1, 3}) {
    at::set_num_threads(threads);
    const QuantizedBatch a = quantize_gptq(*format, problem.weights, problem.hessians, plain());
    const QuantizedBatch b = quantize_gptq(*format, problem.weights, problem.hessians, plain());
    CHECK(a.codes.equal(b.codes));
    CHECK(a.loss.equal(b.loss));
    check_gptq(*format, problem, plain());
  }
  at::set_num_threads(before);
}

TEST_CASE("rows that are solved in parts give the bytes of rows that are solved at once") {
  Problem problem(2, 840, 96, 16);
  problem.weights.narrow(1, 600, 240).mul_(3);  // so that parts differ in what matrices share
  const double mean = problem.hessians[1].diagonal().mean().item<double>();
  problem.hessians[1][3][4] = problem.hessians[1][4][3] = mean * 1000;  // has no factor
  const at::Tensor shifts = 0.05 * problem.hessians;
  std::vector<std::unique_ptr<const Format>> formats;
  formats.push_back(int_format(4, {{"group_size", 32}}));
  const Json whole_matrix{{"group_size", 0}, {"activations", "int8"}};
  formats.push_back(int_format(8, whole_matrix));
  formats.push_back(fp4_format("nv", 16));
  formats.push_back(int_format_by_callbacks(8, whole_matrix));
  formats.push_back(pair_format());
  formats.push_back(two_level_format(4));
  for (const auto& format : formats)
    for (const bool actorder : {true, false}) {
      CAPTURE(format->desc().group_size);
      CAPTURE(actorder);
      GptqOptions options;
      options.actorder = actorder;
      const auto solve = [&](int64_t rows_at_once) {
        options.rows_at_once = rows_at_once;
        return quantize_gptq(*format, problem.weights, problem.hessians, options, shifts);
      };
      const QuantizedBatch whole = solve(0);
      for (const int64_t at_once : {256, 512}) {  // the last part has 328 rows
        const QuantizedBatch parts = solve(at_once);
        CHECK(parts.codes.equal(whole.codes));
        CHECK(parts.params.equal(whole.params));
        CHECK(parts.tensor_params.equal(whole.tensor_params));
        CHECK(parts.values.equal(whole.values));
        CHECK(parts.loss.equal(whole.loss));
        CHECK(parts.rtn_loss.equal(whole.rtn_loss));
        CHECK(parts.rtn == std::vector<bool>{false, true});
      }
    }
}

TEST_CASE("codes of several weights need columns that they divide") {
  CHECK_THROWS_WITH_AS(
      quantize_gptq(*pair_format(), at::zeros({1, 2, 15}), at::eye(15).unsqueeze(0), {}),
      doctest::Contains("15 input features"), Error);
}

TEST_CASE("a shift is made up for: the weights are those that give the original's output") {
  const Inputs in(3);
  const at::Tensor weights = Problem(1, 20, 48, 4).weights[0];
  const auto format = int_format(8, {{"group_size", 16}});  // errors are small beside the shift
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
