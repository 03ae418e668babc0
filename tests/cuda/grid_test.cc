// The arithmetic that the GPU kernels are made of, compiled for the CPU, is the SDK's to the bit.

#include "cuda/grid.h"

#include <aq/sdk/grid.hpp>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "quant/cuda.h"
#include "quant/cuda_grid.h"
#include "quant/formats.h"
#include "torch_doctest.h"

using namespace aqhost;

namespace {

std::vector<std::unique_ptr<const Format>> formats() {
  std::vector<std::unique_ptr<const Format>> all;
  all.push_back(int_format(4, {{"group_size", 64}}));
  all.push_back(int_format(4, {{"group_size", 64}, {"symmetric", false}}));
  all.push_back(int_format(8, {{"group_size", -1}, {"scale_dtype", "float16"}}));
  all.push_back(int_format(2, {{"group_size", 16}, {"scale_rule", "absmax"}}));
  all.push_back(fp4_format("mx", 32));
  all.push_back(fp4_format("nv", 16));
  return all;
}

/// Weights of all magnitudes, exact ties and zeros among them.
std::vector<float> weights_of(std::mt19937& random, std::size_t n) {
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-60, 60), kind(0, 9);
  const float size = std::ldexp(1.0f, kind(random) == 0 ? exponent(random) : -4);
  std::vector<float> weights(n);
  for (float& w : weights) {
    w = normal(random) * size;
    if (kind(random) == 0) w = kind(random) < 5 ? 0.0f : -0.0f;
    if (kind(random) == 0) w = std::round(w / size * 4) / 4 * size;
  }
  return weights;
}

cuda::Params fit(const cuda::Grid& grid, const std::vector<float>& w, const float* importance,
                 float global) {
  float least = 0, most = 0;
  for (const float v : w) {
    least = std::min(least, v);
    most = std::max(most, v);
  }
  if (grid.n_search == 0) return cuda::params_for(grid, least, most, global, 1.0f);
  cuda::Params best;
  double best_error = std::numeric_limits<double>::infinity();
  for (int k = 0; k < grid.n_search; k++) {
    const cuda::Params p = cuda::params_for(grid, least, most, global, grid.search[k]);
    double error = 0;
    for (std::size_t i = 0; i < w.size(); i++)
      error += cuda::error_of(grid, w[i], p.scale / global, p.zero,
                              importance != nullptr ? static_cast<double>(importance[i]) : 1.0);
    if (!(error < best_error)) continue;
    best_error = error;
    best = p;
  }
  return best;
}

}  // namespace

TEST_CASE("the GPU's group fit and rounding are the SDK's to the bit, for every kind of format") {
  std::mt19937 random(3);
  for (const auto& format : formats()) {
    CAPTURE(format->id());
    REQUIRE(cuda_rounds(format->desc()));
    const aq_format_desc& desc = format->desc();
    const aq::Grid expected(desc);
    const cuda::Grid grid = make_cuda_grid(format->desc());
    for (int trial = 0; trial < 300; trial++) {
      const std::vector<float> w = weights_of(random, 48);
      std::vector<float> importance(w.size());
      for (float& h : importance) h = std::uniform_real_distribution<float>(0, 2)(random);
      const float* h = trial % 3 == 0 ? nullptr : importance.data();
      const float global = desc.tensor_params > 0
                               ? aq::fit_global(desc, w.data(), static_cast<int64_t>(w.size()))
                               : 1.0f;
      const aq::GroupParams want =
          aq::fit_group(desc, expected, w.data(), static_cast<int64_t>(w.size()), h, global);
      const cuda::Params got = fit(grid, w, h, global);
      REQUIRE(got.scale == want.scale);
      REQUIRE(got.zero == want.zero);
      for (const float v : w) {
        const float t = v / (want.scale / global);
        const cuda::Rounded rounded = cuda::round_to_grid(grid, t, want.zero);
        REQUIRE(rounded.code == expected.code(t, want.zero));
        REQUIRE(std::bit_cast<uint32_t>(rounded.value) ==
                std::bit_cast<uint32_t>(expected.value(rounded.code, want.zero)));
      }
    }
  }
}

TEST_CASE("the GPU's scales are rounded as the SDK's, from the smallest to the largest") {
  std::mt19937 random(4);
  for (int32_t kind = AQ_SCALE_F32; kind <= AQ_SCALE_E8M0; kind++)
    for (const int32_t rounding : {AQ_ROUND_DOWN, AQ_ROUND_UP, AQ_ROUND_EVEN}) {
      aq_format_desc desc{};
      desc.scale_kind = kind;
      desc.scale_round = rounding;
      desc.scale_mantissa_bits = 1;
      cuda::Grid grid{};
      grid.scale_kind = kind;
      grid.scale_round = rounding;
      grid.scale_mantissa_bits = 1;
      for (int i = 0; i < 2000; i++) {
        // every exponent, subnormals too; many with few mantissa bits, so that ties come up
        const uint32_t mask = i % 2 == 0 ? 0x7fffffffu : 0x7fff8000u;
        const float x = std::bit_cast<float>(static_cast<uint32_t>(random()) & mask);
        if (!std::isfinite(x) || x == 0) continue;
        CAPTURE(x);
        CAPTURE(kind);
        REQUIRE(cuda::round_scale(grid, x) == aq::round_scale(desc, x));
      }
    }
}
