// Compares rounding of the GPU kernels, compiled for the CPU, with that of the SDK.

#include "cuda/grid.h"

#include <aq/sdk/grid.hpp>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "quant/formats.h"
#include "quant/gpu.h"
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

/// Weights of all magnitudes, with exact ties and zeros among them.
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

}  // namespace

TEST_CASE("the GPU's grid rounds and decodes as the SDK's to the bit, for every kind of format") {
  std::mt19937 random(3);
  for (const auto& format : formats()) {
    CAPTURE(format->id());
    const FormatDesc& desc = format->desc();
    REQUIRE(gpu_rounds(desc));
    const aq::Grid expected(desc);
    const cuda::Grid grid = kernel_grid(desc);
    REQUIRE(grid.desc.n_search == desc.n_search);
    REQUIRE(std::equal(desc.search, desc.search + desc.n_search, grid.search));
    for (int trial = 0; trial < 300; trial++) {
      const std::vector<float> w = weights_of(random, 48);
      const auto n = static_cast<int64_t>(w.size());
      const float global = desc.tensor_params > 0 ? aq::fit_global(desc, w.data(), n) : 1.0f;
      const aq::GroupParams params = aq::fit_group(desc, expected, w.data(), n, nullptr, global);
      for (const float v : w) {
        const float t = v / (params.scale / global);
        const aq::Rounded rounded = cuda::round_to_grid(grid, t, params.zero);
        REQUIRE(rounded.code == expected.code(t, params.zero));
        const float value = expected.value(rounded.code, params.zero);
        REQUIRE(std::bit_cast<uint32_t>(rounded.value) == std::bit_cast<uint32_t>(value));
        const float decoded = cuda::value_of(grid, rounded.code, params.zero);
        REQUIRE(std::bit_cast<uint32_t>(decoded) == std::bit_cast<uint32_t>(value));
      }
    }
  }
}
