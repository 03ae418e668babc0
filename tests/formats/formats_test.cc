#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <span>

#include "base/error.h"
#include "plugin/registry.h"
#include "quant/rounder.h"
#include "variants.h"

namespace aqhost {
namespace {

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::ranges::equal(std::as_bytes(std::span(a)), std::as_bytes(std::span(b)));
}

struct Coded {
  std::vector<float> params, tensor_params, values;
  std::vector<std::byte> codes;
};

/// One row, a group of its own, through the plugin's callbacks.
Coded by_callbacks(const Format& format, const std::vector<float>& row,
                   const std::vector<float>& importance) {
  const auto n = static_cast<int64_t>(row.size());
  Coded c;
  c.params.resize(format.desc().group_params);
  c.values.resize(row.size());
  c.codes.resize(row.size());
  c.tensor_params = format.fit_tensor(row, 1, n, importance);
  format.fit(row, 1, n, importance, c.tensor_params, c.params);
  format.quantize(row, 1, n, c.params, c.tensor_params, c.codes, c.values);
  return c;
}

/// The same by the host alone.
Coded by_host(const Format& format, const std::vector<float>& row,
              const std::vector<float>& importance) {
  const auto n = static_cast<int64_t>(row.size());
  const Rounder rounder(format.desc());
  Rounder::Scratch scratch;
  Coded c;
  c.values.resize(row.size());
  c.codes.resize(row.size());
  const float global = rounder.fit_global(row.data(), n);
  if (format.desc().global_scale()) c.tensor_params = {global};
  const float* h = importance.empty() ? nullptr : importance.data();
  aq::GroupParams fitted;
  if (format.desc().two_level()) {
    c.params.resize(4);
    rounder.fit_two_level(row.data(), n, h, c.params.data());
    fitted = {c.params[0], c.params[1]};
  } else {
    fitted = rounder.fit(row.data(), n, h, global, scratch);
    c.params = {fitted.scale};
    if (format.desc().zero_point()) c.params.push_back(fitted.zero);
  }
  const std::vector<float> step(row.size(), fitted.scale / global), zero(row.size(), fitted.zero);
  rounder.round(n, row.data(), step.data(), zero.data(), reinterpret_cast<uint8_t*>(c.codes.data()),
                c.values.data());
  return c;
}

/// Of every grid value and every bound between two: itself and its neighbours on both sides.
std::vector<float> telling_points(const FormatDesc& desc) {
  std::vector<float> points{0.0f, -0.0f, 1e30f, -1e30f, 1e-40f, -1e-40f, INFINITY, -INFINITY};
  std::vector<float> values(desc.table().begin(), desc.table().end());
  for (int q = desc.int_min; desc.table().empty() && q <= desc.int_max; q++)
    values.push_back(static_cast<float>(q));
  std::sort(values.begin(), values.end());
  for (std::size_t i = 0; i < values.size(); i++)
    for (const float x : {values[i], (values[i] + values[i > 0 ? i - 1 : i]) / 2}) {
      points.push_back(x);
      points.push_back(std::nextafter(x, INFINITY));
      points.push_back(std::nextafter(x, -INFINITY));
    }
  return points;
}

}  // namespace

TEST_CASE("a copy of a description keeps its table, factors and group sizes without its format") {
  const Registry registry({AQ_BUILD_DIR "/plugins"});
  FormatDesc copy, moved = registry.create_format("mxfp4", Json::object())->desc();
  copy = moved;
  const FormatDesc last = std::move(moved);
  for (const FormatDesc& desc : {copy, last}) {
    CHECK(desc.table().size() == 16);
    CHECK(desc.table()[7] == 6);
    CHECK(desc.search_factors().size() == 3);
    CHECK(desc.search_factors()[1] == 0.5f);
    CHECK(desc.allowed_group_sizes()[0] == 32);
  }
}

TEST_CASE("every format: the host's arithmetic is the plugin's, bit for bit") {
  for (const auto& format : variants()) {
    CAPTURE(label(*format));
    const int64_t n = format->desc().group_size > 0 ? format->desc().group_size : 96;
    std::vector<float> importance(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < importance.size(); i++)
      importance[i] = i % 5 == 0 ? 0.0f : static_cast<float>(i % 7) + 0.3f;
    int index = 0;
    for (const std::vector<float>& row : hard_rows(format->desc(), n))
      for (const auto& h : {std::vector<float>(), importance}) {
        CAPTURE(index++ / 2);
        const Coded theirs = by_callbacks(*format, row, h), ours = by_host(*format, row, h);
        REQUIRE(same_bits(ours.params, theirs.params));
        REQUIRE(same_bits(ours.tensor_params, theirs.tensor_params));
        REQUIRE(same_bits(ours.codes, theirs.codes));
        REQUIRE(same_bits(ours.values, theirs.values));
        std::vector<float> decoded(row.size());
        format->dequantize(theirs.codes, 1, n, theirs.params, theirs.tensor_params, decoded);
        REQUIRE(same_bits(decoded, theirs.values));
      }
  }
}

TEST_CASE("every format: the fast elements round as Grid does, at every bound and beside it") {
  for (const auto& format : variants()) {
    CAPTURE(label(*format));
    const FormatDesc& d = format->desc();
    const aq::Grid grid(d);
    const Element element = make_element(d, grid);
    CHECK(!std::holds_alternative<std::monostate>(element));
    const float zero = d.zero_point() ? 1.0f : 0.0f;
    std::visit(
        [&](const auto& fast) {
          if constexpr (!std::is_same_v<std::remove_cvref_t<decltype(fast)>, std::monostate>)
            for (const float t : telling_points(d)) {
              CAPTURE(t);
              const aq::Rounded found = fast(t, zero);
              REQUIRE(found.code == grid.code(t, zero));
              const float value = grid.value(found.code, zero);
              REQUIRE(std::memcmp(&found.value, &value, sizeof value) == 0);
            }
        },
        element);
  }
}

TEST_CASE("every code decodes to its grid value, and that value is coded as the first such code") {
  for (const auto& format : variants()) {
    CAPTURE(label(*format));
    const FormatDesc& d = format->desc();
    const std::size_t count = std::size_t{1} << d.element_bits;
    std::vector<std::byte> codes(count);
    for (std::size_t c = 0; c < count; c++) codes[c] = static_cast<std::byte>(c);
    std::vector<float> params(d.group_params, 0.0f), tensor_params(d.tensor_params, 1.0f);
    params[0] = 2;
    std::vector<float> values(count), again(count);
    const auto n = static_cast<int64_t>(count);
    format->dequantize(codes, 1, n, params, tensor_params, values);
    std::vector<std::byte> recoded(count);
    format->quantize(values, 1, n, params, tensor_params, recoded, again);
    for (std::size_t c = 0; c < count; c++) {
      const float expected =
          d.table().empty() ? static_cast<float>(d.int_min + static_cast<int>(c)) : d.values[c];
      CHECK(values[c] == 2 * expected);
      CHECK(std::signbit(values[c]) == std::signbit(expected));
      CHECK(again[c] == values[c]);
      CHECK(std::to_integer<std::size_t>(recoded[c]) <= c);
    }
  }
}

TEST_CASE("whether a K-quant has minima is not for a recipe to say") {
  const Registry registry({AQ_BUILD_DIR "/plugins"});
  for (const auto& [id, symmetric] : {std::pair{"q4_k", false}, std::pair{"q6_k", true}}) {
    CHECK(registry.create_format(id, {{"symmetric", symmetric}})->desc().minima() == !symmetric);
    CHECK_THROWS_WITH_AS(registry.create_format(id, {{"symmetric", !symmetric}}),
                         doctest::Contains("the option symmetric is"), Error);
  }
}

TEST_CASE("one scale of a whole matrix is that of all its rows together") {
  for (const auto& format : variants()) {
    if (format->desc().group_size != 0) continue;
    const std::vector<float> matrix{0.1f, -0.2f, 0.3f, 0.0f, 5.0f, -1.0f, 2.0f, 0.5f};
    std::vector<float> rows(2), whole(1);
    format->fit(matrix, 2, 4, {}, {}, rows);
    CHECK(rows[0] == rows[1]);
    format->fit(matrix, 1, 8, {}, {}, whole);
    CHECK(rows[0] == whole[0]);
    const std::vector<float> importance{1, 0, 2, 3};
    const std::vector<float> repeated{1, 0, 2, 3, 1, 0, 2, 3};
    format->fit(matrix, 2, 4, importance, {}, rows);
    format->fit(matrix, 1, 8, repeated, {}, whole);
    CHECK(rows[1] == whole[0]);
  }
}

TEST_CASE("MXFP4's squared error on N(0,1) is what the scale rules are known for") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> weights(std::size_t{1} << 20);
  for (float& w : weights) w = normal(random);
  const auto error_of = [&](const std::string& rule) {
    for (const auto& format : variants())
      if (format->id() == "mxfp4" && format->options().value("scale_rule", "") == rule) {
        const Rounder rounder(format->desc());
        Rounder::Scratch scratch;
        double sum = 0;
        std::vector<float> zero(32, 0.0f), values(32);
        std::vector<uint8_t> codes(32);
        for (std::size_t i = 0; i < weights.size(); i += 32) {
          const float scale = rounder.fit(&weights[i], 32, nullptr, 1, scratch).scale;
          const std::vector<float> step(32, scale);
          rounder.round(32, &weights[i], step.data(), zero.data(), codes.data(), values.data());
          for (std::size_t k = 0; k < 32; k++)
            sum += std::pow(static_cast<double>(weights[i + k] - values[k]), 2);
        }
        return sum / static_cast<double>(weights.size());
      }
    return 0.0;
  };
  // the first two by NumPy and ml_dtypes on 2 million numbers: 0.01325, 0.01335
  CHECK(error_of("floor") == doctest::Approx(0.01325).epsilon(0.01));
  CHECK(error_of("ceil") == doctest::Approx(0.01335).epsilon(0.01));
  CHECK(error_of("even") < error_of("floor"));
  CHECK(error_of("mse") < error_of("even"));
}

}  // namespace aqhost
