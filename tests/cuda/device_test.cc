// Compares the GPU module with the CPU, on a GPU.

#define DOCTEST_CONFIG_IMPLEMENT
#include "tensor/device.h"

#include <cstdio>
#include <cstring>

#include "calibrate/hessian.h"
#include "forward/fused.h"
#include "quant/activations.h"
#include "quant/cells.h"
#include "quant/factor.h"
#include "quant/formats.h"
#include "quant/gpu.h"
#include "quant/problem.h"
#include "quant/quantize.h"
#include "torch_doctest.h"

using namespace aqhost;

namespace {

struct Case {
  const char* name;
  std::unique_ptr<const Format> format;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  all.push_back({"int4 g128", int_format(4, {{"group_size", 128}})});
  all.push_back({"int4 g32 asymmetric", int_format(4, {{"group_size", 32}, {"symmetric", false}})});
  all.push_back({"int8 row", int_format(8, {{"group_size", -1}})});
  all.push_back(
      {"int3 g256 fp16", int_format(3, {{"group_size", 256}, {"scale_dtype", "float16"}})});
  all.push_back({"int4 g16", int_format(4, {{"group_size", 16}})});
  all.push_back({"mxfp4", fp4_format("mx", 32)});
  all.push_back({"nvfp4", fp4_format("nv", 16)});
  return all;
}

bool equal_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.cpu().contiguous(), y = b.cpu().contiguous();
  return x.sizes() == y.sizes() && x.nbytes() == y.nbytes() &&
         std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0;
}

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a.cpu().to(at::kDouble) - b.cpu().to(at::kDouble)).norm() /
          b.cpu().to(at::kDouble).norm())
      .item<double>();
}

}  // namespace

TEST_CASE("rounding to nearest on a GPU gives the CPU's bits") {
  for (const Case& c : cases()) {
    CAPTURE(c.name);
    for (const auto& [count, rows, cols] : {std::tuple{1, 5, 256}, {3, 37, 768}, {2, 130, 512}}) {
      const Problem problem(count, rows, cols, static_cast<uint64_t>(rows));
      // whose diagonals have no roundings that differ between the devices
      const at::Tensor equal = at::eye(cols).expand({count, cols, cols}).contiguous();
      const QuantizedBatch want = quantize_rtn(*c.format, problem.weights, equal, {});
      const QuantizedBatch got = quantize_rtn(*c.format, problem.weights.cuda(), equal.cuda(), {});
      CHECK(equal_bits(got.params, want.params));
      CHECK(equal_bits(got.tensor_params, want.tensor_params));
      CHECK(equal_bits(got.codes, want.codes));
      CHECK(equal_bits(got.values, want.values));
      const QuantizedBatch weighted =
          quantize_rtn(*c.format, problem.weights, problem.hessians, {});
      const QuantizedBatch on_gpu =
          quantize_rtn(*c.format, problem.weights.cuda(), problem.hessians.cuda(), {});
      CHECK(relative(on_gpu.loss, weighted.loss) < 1e-4);
    }
  }
}

TEST_CASE("GPTQ on a GPU is the CPU's but where sums flip a tie") {
  for (const Case& c : cases())
    for (const bool actorder : {true, false})
      for (const auto& [count, rows, cols] : {std::tuple{1, 5, 256}, {3, 37, 768}, {2, 130, 512}}) {
        CAPTURE(c.name);
        CAPTURE(actorder);
        CAPTURE(cols);
        const Problem problem(count, rows, cols, static_cast<uint64_t>(cols));
        GptqOptions options;
        options.actorder = actorder;
        options.sweeps = rows % 3;  // 2, 1
        options.tf32 = false;
        const at::Tensor shifts = 0.05 * problem.hessians;
        const QuantizedBatch want =
            quantize_gptq(*c.format, problem.weights, problem.hessians, options, shifts);
        const QuantizedBatch got = quantize_gptq(*c.format, problem.weights.cuda(),
                                                 problem.hessians.cuda(), options, shifts.cuda());
        const double differ = got.codes.cpu().ne(want.codes).sum().item<double>() /
                              static_cast<double>(want.codes.numel());
        const double loss = got.loss.sum().item<double>() / want.loss.sum().item<double>();
        std::printf("%-22s actorder %d [%d, %d, %d]: %.4f %% of codes differ, loss x %.6f\n",
                    c.name, actorder ? 1 : 0, count, rows, cols, 100 * differ, loss);
        CHECK(differ < 0.02);
        CHECK(std::abs(loss - 1) < 1e-3);
        CHECK(relative(got.values, want.values) < 0.05);
      }
}

TEST_CASE("products in TF32 do not raise the loss of GPTQ") {
  double sum = 0;
  int count = 0;
  for (const Case& c : cases())
    for (const bool actorder : {true, false})
      for (const int64_t seed : {1, 2}) {
        CAPTURE(c.name);
        const Problem problem(2, 200, 768, static_cast<uint64_t>(seed));
        const at::Tensor w = problem.weights.cuda(), h = problem.hessians.cuda();
        GptqOptions options;
        options.actorder = actorder;
        const auto loss = [&](bool tf32) {
          options.tf32 = tf32;
          return quantize_gptq(*c.format, w, h, options, 0.05 * h).loss.sum().item<double>();
        };
        const double ratio = loss(true) / loss(false);
        CHECK(std::abs(ratio - 1) < 1e-2);
        sum += ratio;
        count++;
      }
  std::printf("the mean loss with TF32 is %.5f times that without\n", sum / count);
  CHECK(std::abs(sum / count - 1) < 1e-3);
}

TEST_CASE("activations are rounded to the CPU's bits") {
  const at::Tensor x = at::randn({3, 50, 256}).to(at::kBFloat16);
  for (Case& c : cases()) {
    CAPTURE(c.name);
    ActivationRounder rounder(std::move(c.format));
    rounder.observe(x);
    CHECK(equal_bits(rounder(x.cuda()), rounder(x)));
  }
}

TEST_CASE("refined codes are those of the CPU") {
  const auto format = int_format(3, {{"group_size", 32}});
  const Problem problem(1, 24, 64, 5);
  const QuantizedBatch batch = quantize_rtn(*format, problem.weights, {}, {});
  QuantizedMatrix want = batch.matrix(0, 0, 24), got = want;
  Cells here(format->desc(), problem.weights[0], want);
  Cells there(format->desc(), problem.weights[0], got, at::kCUDA);
  const at::Tensor gradient = at::randn({24, 64});
  here.move(gradient, 0.5);
  there.move(gradient.cuda(), 0.5);
  CHECK(equal_bits(there.weights(), here.weights()));
  here.store(want);
  there.store(got);
  CHECK((got.codes == want.codes));
}

TEST_CASE("Hessians from bfloat16 inputs are the CPU's") {
  const at::Tensor x = at::randn({3000, 256}).to(at::kBFloat16), s = at::rand({3000});
  for (const bool weighted : {false, true}) {
    Hessian want(256), got(256, at::kCUDA);
    want.add(x.to(at::kFloat), weighted ? s : at::Tensor());
    got.add(x.cuda(), weighted ? s.cuda() : at::Tensor());
    CHECK(relative(got.sum(), want.sum()) < 3e-3);
    const at::Tensor before = (x + 0.1 * at::randn({3000, 256})).to(at::kBFloat16);
    want.add_shift(x.to(at::kFloat), weighted ? s : at::Tensor(), before.to(at::kFloat), 2);
    got.add_shift(x.cuda(), weighted ? s.cuda() : at::Tensor(), before.cuda(), 2);
    CHECK(relative(got.shift(), want.shift()) < 1e-2);
    CHECK(got.weight() == doctest::Approx(want.weight()));
    CHECK(got.tokens() == want.tokens());
  }
}

TEST_CASE("factors on a GPU are the CPU's") {
  for (const int64_t n : {1, 40, 64, 65, 200, 768}) {
    CAPTURE(n);
    const at::Tensor x = at::randn({3, 2 * n, n});
    at::Tensor hessians = at::bmm(x.transpose(1, 2), x);
    hessians[2].zero_();  // all columns are dead
    for (const bool actorder : {true, false}) {
      const Factors want = factor_hessians(hessians, 0.01, actorder);
      const Factors got = factor_hessians(hessians.cuda(), 0.01, actorder);
      CHECK(equal_bits(got.order, want.order));
      CHECK((got.failed == want.failed));
      CHECK(relative(got.damped, want.damped) < 1e-6);
      CHECK(relative(got.upper, want.upper) < 1e-5);
      CHECK(got.upper.triu().equal(got.upper));
    }
  }
}

TEST_CASE("a Hessian that is not positive definite is damped more, as on the CPU") {
  const int64_t n = 150;
  const at::Tensor x = at::randn({4, 2 * n, n});
  at::Tensor hessians = at::bmm(x.transpose(1, 2), x);
  hessians[1].sub_(at::eye(n) * 0.9 *
                   hessians[1].diagonal().mean());  // needs ten times the damping
  hessians[3].neg_();                               // has no factor
  const Factors want = factor_hessians(hessians, 0.1, true);
  const Factors got = factor_hessians(hessians.cuda(), 0.1, true);
  REQUIRE((want.failed == std::vector<bool>{false, false, false, true}));
  CHECK((got.failed == want.failed));
  CHECK(relative(got.damped, want.damped) < 1e-6);
  CHECK(relative(got.upper, want.upper) < 1e-4);
}

TEST_CASE("steps of a layer on a GPU are the CPU's") {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    CAPTURE(type);
    // results differ by the last bit at most
    const double close = type == at::kFloat ? 1e-6 : 4e-3;
    for (const int64_t size : {6, 64, 200}) {
      CAPTURE(size);
      const at::Tensor x = at::randn({2, 37, size}).to(type), wide = at::randn({2, 37, size});
      const at::Tensor weight = at::rand({size}).to(type);
      CHECK(relative(fused_rms_norm(x.cuda(), weight.cuda(), 1e-5F),
                     fused_rms_norm(x, weight, 1e-5F)) < close);
      CHECK(relative(fused_rms_norm(wide.cuda(), weight.cuda(), 1e-5F),
                     fused_rms_norm(wide, weight, 1e-5F)) < close);

      at::Tensor want = at::randn({74, size}).to(type), got = want.cuda();
      const at::Tensor up = at::randn({74, size}).to(type);
      fused_silu_times(want, up);
      at::Tensor there = got;
      fused_silu_times(there, up.cuda());
      CHECK(relative(there, want) < close);

      at::Tensor sums = at::randn({100, size}), sums_there = sums.cuda();
      const at::Tensor rows = at::randperm(100).narrow(0, 0, 74), weights = at::rand({74});
      fused_add_rows(sums, rows, weights, up);
      fused_add_rows(sums_there, rows.cuda(), weights.cuda(), up.cuda());
      CHECK(relative(sums_there, sums) < 1e-6);

      const at::Tensor angles = at::randn({40, size / 2 - 1});
      const at::Tensor cos = angles.cos().to(type), sin = angles.sin().to(type);
      for (const bool interleaved : {true, false}) {
        at::Tensor heads = at::randn({2, 37, 3, size}).to(type), heads_there = heads.cuda();
        fused_rotate(heads, cos, sin, interleaved);
        fused_rotate(heads_there, cos.cuda(), sin.cuda(), interleaved);
        CHECK(relative(heads_there, heads) < close);
      }
    }
  }
}

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const bool listing = argc > 1 && std::strstr(argv[1], "list-test-cases") != nullptr;
  if (!listing) {
    try {
      open_device("cuda");
    } catch (const std::exception& e) {
      std::printf("SKIPPED: %s\n", e.what());
      return 77;
    }
  }
  return context.run();
}
