#include <doctest/doctest.h>

#include <aq/sdk/grid.hpp>
#include <random>
#include <utility>

namespace {

aq_format_desc table_of(const std::vector<float>& values, int bits) {
  aq_format_desc desc{};
  desc.element_kind = AQ_ELEM_TABLE;
  desc.element_bits = bits;
  desc.values = values.data();
  return desc;
}

/// The contract of aq/quantizer.h, followed step by step: finds the neighbours of t among the
/// values and their midpoint, and takes the even code at the midpoint, the first of equal codes,
/// and of two zeros the one with the sign of t.
uint32_t slow_code(const std::vector<float>& values, float t) {
  const auto first = [&](float value) {
    uint32_t found = static_cast<uint32_t>(values.size());
    for (uint32_t c = static_cast<uint32_t>(values.size()); c-- > 0;)
      if (values[c] == value && (value != 0 || std::signbit(values[c]) == std::signbit(value)))
        found = c;
    return found;
  };
  float low = -std::numeric_limits<float>::infinity(), high = -low;
  for (const float v : values) {
    if (v <= t && v > low) low = v;
    if (v > t && v < high) high = v;
  }
  float value = std::isinf(low) ? high : low;
  if (std::isfinite(low) && std::isfinite(high)) {
    const float middle = (low + high) / 2;
    // if there are both zeros, +0 is the neighbour of the values above them
    const auto code_of = [&](float v) {
      const float zero = v == low ? 0.0f : -0.0f;
      return v != 0 ? first(v) : first(zero) < values.size() ? first(zero) : first(-zero);
    };
    if (t > middle || (t == middle && code_of(low) % 2 != 0)) value = high;
  }
  if (value != 0) return first(value);
  const uint32_t same = first(std::copysign(0.0f, t));
  return same < values.size() ? same : first(std::copysign(0.0f, -t));
}

void check_table(const std::vector<float>& values, int bits) {
  const aq_format_desc desc = table_of(values, bits);
  const aq::Grid grid(desc);
  std::vector<float> sorted = values, probes{0.0f, -0.0f, 1e30f, -1e30f};
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; i < sorted.size(); i++) {
    probes.push_back(sorted[i]);
    const float middle = i > 0 ? (sorted[i - 1] + sorted[i]) / 2 : sorted[i] - 1;
    for (const float x : {middle, std::nextafter(middle, 1e30f), std::nextafter(middle, -1e30f)})
      probes.push_back(x);
  }
  for (const float t : probes) {
    CAPTURE(t);
    REQUIRE(grid.code(t, 0) == slow_code(values, t));
    REQUIRE(grid.value(grid.code(t, 0), 0) == values[grid.code(t, 0)]);
  }
}

}  // namespace

TEST_CASE(
    "table grids: E2M1 with its two zeros, and random ones with repeats, against a slow scan") {
  std::vector<float> e2m1{0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (std::size_t i = 0; i < 8; i++) e2m1.push_back(-e2m1[i]);
  check_table(e2m1, 4);
  const aq_format_desc desc = table_of(e2m1, 4);
  const aq::Grid grid(desc);
  CHECK(grid.code(-0.1f, 0) == 8);  // -0
  CHECK(grid.code(0.25f, 0) == 0);  // the even code at the midpoint
  CHECK(grid.code(0.75f, 0) == 2);
  CHECK(grid.code(5, 0) == 6);
  CHECK(grid.code(-5, 0) == 14);
  CHECK(grid.code(100, 0) == 7);
  std::mt19937 random(3);
  for (int round = 0; round < 500; round++) {
    const int bits = 1 + static_cast<int>(random() % 4);
    std::vector<float> values;
    for (int i = 0; i < 1 << bits; i++)
      values.push_back(static_cast<float>(static_cast<int>(random() % 13) - 6) * 0.25f);
    check_table(values, bits);
  }
}

TEST_CASE("integer grids: rounded to even, moved by the zero point, saturating") {
  aq_format_desc desc{};
  desc.element_kind = AQ_ELEM_INT;
  desc.element_bits = 4;
  desc.int_min = -8;
  desc.int_max = 7;
  const aq::Grid grid(desc);
  for (const float zero : {-8.0f, -3.0f, 0.0f, 7.0f})
    for (int q = -80; q <= 80; q++) {
      const float t = static_cast<float>(q) / 4;
      int nearest = q / 4;  // t is q quarters; halves go to the even integer
      if (const int rest = q - 4 * nearest;
          std::abs(rest) == 3 || (std::abs(rest) == 2 && nearest % 2 != 0))
        nearest += q < 0 ? -1 : 1;
      const int code = std::clamp(nearest + static_cast<int>(zero), -8, 7) + 8;
      REQUIRE(grid.code(t, zero) == static_cast<uint32_t>(code));
      REQUIRE(grid.value(static_cast<uint32_t>(code), zero) == static_cast<float>(code - 8) - zero);
    }
}

TEST_CASE("a fit takes the first factor of the least weighted error") {
  const std::vector<float> factors{1.0f, 0.9f, 0.8f, 0.7f, 0.9f};
  aq_format_desc desc{};
  desc.element_kind = AQ_ELEM_INT;
  desc.element_bits = 3;
  desc.int_min = -4;
  desc.int_max = 3;
  desc.scale_divisor = 3.5f;
  desc.scale_kind = AQ_SCALE_F32;
  desc.search = factors.data();
  desc.n_search = static_cast<uint32_t>(factors.size());
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  int negative = 0;
  for (const auto& [rule, flags] : {std::pair<int32_t, uint32_t>{AQ_FIT_ABSMAX, 0},
                                    {AQ_FIT_ABSMAX, AQ_FORMAT_SIGNED_SCALE},
                                    {AQ_FIT_MINMAX, AQ_FORMAT_ZERO_POINT}})
    for (int round = 0; round < 200; round++) {
      desc.fit_rule = rule;
      desc.flags = flags;
      const aq::Grid grid(desc);
      std::vector<float> weights(24), importance(24);
      for (float& w : weights) w = normal(random) + 0.5f;
      for (float& h : importance) h = std::fabs(normal(random));
      const auto error = [&](const aq::GroupParams& p) {
        double sum = 0;
        for (std::size_t i = 0; i < weights.size(); i++) {
          const float stored =
              grid.value(grid.code(weights[i] / p.scale, p.zero), p.zero) * p.scale;
          sum += importance[i] * (double{weights[i]} - stored) * (double{weights[i]} - stored);
        }
        return sum;
      };
      const aq::GroupParams got =
          aq::fit_group(desc, grid, weights.data(), 24, importance.data(), 1);
      float most = 0, least = 0;
      for (const float w : weights) most = std::max(most, w), least = std::min(least, w);
      bool offered = false;
      for (const float f : factors) {
        aq::GroupParams p;
        p.scale = rule == AQ_FIT_ABSMAX ? f * (std::max(most, -least) / 3.5f)
                                        : f * ((most - least) / 7.0f);
        if (flags == AQ_FORMAT_SIGNED_SCALE && most > -least) p.scale = -p.scale;
        if (rule == AQ_FIT_MINMAX)
          p.zero = std::clamp(std::nearbyint(-4 - f * least / p.scale), -4.0f, 3.0f);
        offered = offered || (p.scale == got.scale && p.zero == got.zero);
        REQUIRE(error(got) <= error(p) * (1 + 1e-6));
      }
      REQUIRE(offered);
      negative += got.scale < 0 ? 1 : 0;
    }
  CHECK(negative > 100);  // the mean of the weights is positive
  CHECK(negative < 200);
}

TEST_CASE("zeros have scale 1 and global scale 1") {
  aq_format_desc desc{};
  desc.element_kind = AQ_ELEM_INT;
  desc.element_bits = 4;
  desc.int_min = -8;
  desc.int_max = 7;
  desc.fit_rule = AQ_FIT_ABSMAX;
  desc.scale_divisor = 7.5f;
  desc.scale_kind = AQ_SCALE_F32;
  desc.global_max = 2688;
  const aq::Grid grid(desc);
  const float zeros[3] = {0, -0.0f, 0};
  CHECK(aq::fit_group(desc, grid, zeros, 3, nullptr, 1).scale == 1);
  CHECK(aq::fit_global(desc, zeros, 3) == 1);
  const float tiny[2] = {0x1p-149f, 0};
  CHECK(aq::fit_global(desc, tiny, 2) == std::numeric_limits<float>::max());
  CHECK(aq::fit_group(desc, grid, tiny, 2, nullptr, 1).scale >=
        std::numeric_limits<float>::denorm_min());
}
