#include <doctest/doctest.h>

#include <algorithm>
#include <aq/sdk/two_level.hpp>
#include <random>

namespace {

/// A K-quant of `bits` bits.
aq_format_desc k_quant(int bits) {
  static const std::vector<float> kSearch{1.1f,  1.05f, 1,     0.95f, 0.9f,  0.85f, 0.8f,
                                          0.75f, 0.7f,  0.65f, 0.6f,  0.55f, 0.5f};
  aq_format_desc d{};
  d.fit_rule = AQ_FIT_TWO_LEVEL;
  d.element_kind = AQ_ELEM_INT;
  d.scale_kind = AQ_SCALE_F16;
  d.super_size = 256;
  d.group_size = bits == 4 || bits == 5 ? 32 : 16;
  const bool minima = bits != 3 && bits != 6;
  d.int_min = minima ? 0 : -(1 << (bits - 1));
  d.int_max = d.int_min + (1 << bits) - 1;
  d.sub_min = minima ? 1 : bits == 3 ? -32 : -128;
  d.sub_max = bits == 2 ? 15 : bits == 3 ? 31 : bits == 6 ? 127 : 63;
  d.sub_minimum_max = minima ? d.sub_max : 0;
  d.search = kSearch.data();
  d.n_search = static_cast<uint32_t>(kSearch.size());
  return d;
}

double weighted_error(const aq_format_desc& d, const std::vector<float>& w, const float* h,
                      const std::vector<aq::TwoLevelParams>& params) {
  double sum = 0;
  for (std::size_t i = 0; i < w.size(); i++) {
    const aq::TwoLevelParams& p = params[i / static_cast<std::size_t>(d.group_size)];
    const float q = std::clamp(std::rint((w[i] + p.minimum) / p.scale),
                               static_cast<float>(d.int_min), static_cast<float>(d.int_max));
    const double off = w[i] - (q * p.scale - p.minimum);
    sum += (h == nullptr ? 1.0 : static_cast<double>(h[i])) * off * off;
  }
  return sum;
}

/// What the smallest and largest weight of each group make of it: the scale (and the minimum) with
/// which none saturates, rounded to the lattice whose ends the largest of them are.
std::vector<aq::TwoLevelParams> plain_rule(const aq_format_desc& d, const std::vector<float>& w) {
  const auto size = static_cast<std::size_t>(d.group_size);
  std::vector<aq::TwoLevelParams> params;
  aq::TwoLevelParams most{0, 0, 0, 0};
  for (std::size_t begin = 0; begin < w.size(); begin += size) {
    aq::TwoLevelParams p{0, 0, 0, 0};
    const auto first = w.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto [low, high] = std::minmax_element(first, first + d.group_size);
    if (d.sub_minimum_max > 0) {
      p.minimum = std::max(0.0f, -*low);
      p.scale = (*high + p.minimum) / static_cast<float>(d.int_max);
    } else {
      p.scale = std::max(-*low, *high) / static_cast<float>(d.int_max);
    }
    most.scale = std::max(most.scale, p.scale);
    most.minimum = std::max(most.minimum, p.minimum);
    params.push_back(p);
  }
  const aq::TwoLevelFit lattice(d);
  for (aq::TwoLevelParams& p : params) {
    p.d = aq::kF16.round(most.scale / static_cast<float>(d.sub_max));
    if (d.sub_minimum_max > 0)
      p.dmin = aq::kF16.round(most.minimum / static_cast<float>(d.sub_minimum_max));
    p.scale = static_cast<float>(lattice.k_near(p.scale / p.d)) * p.d;
    p.minimum = static_cast<float>(lattice.m_near(p.minimum, p.dmin)) * p.dmin;
  }
  return params;
}

std::vector<aq::TwoLevelParams> fitted(const aq_format_desc& d, const std::vector<float>& w,
                                       const float* h) {
  std::vector<aq::TwoLevelParams> params(w.size() / static_cast<std::size_t>(d.group_size));
  aq::TwoLevelFit(d).fit(w.data(), static_cast<int64_t>(w.size()), h, params.data());
  return params;
}

void check_lattice(const aq_format_desc& d, const std::vector<aq::TwoLevelParams>& params) {
  const aq::TwoLevelFit lattice(d);
  for (const aq::TwoLevelParams& p : params) {
    CHECK(p.d == params[0].d);
    CHECK(p.dmin == params[0].dmin);
    CHECK(p.d != 0);
    CHECK(aq::kF16.round(p.d) == p.d);
    CHECK(aq::kF16.round(p.dmin) == p.dmin);
    const float k = p.scale / p.d;
    CHECK(k == std::rint(k));
    CHECK(k != 0);
    CHECK(k >= static_cast<float>(d.sub_min));
    CHECK(k <= static_cast<float>(d.sub_max));
    CHECK(p.scale == static_cast<float>(lattice.k_of(p)) * p.d);
    CHECK(p.minimum >= 0);
    CHECK(p.minimum == static_cast<float>(lattice.m_of(p)) * p.dmin);
    if (d.sub_minimum_max == 0) CHECK(p.dmin == 0);
  }
}

/// The error of the fit over many super-groups, relative to the error of the plain rule.
/// `degrees` of freedom of Student's t distribution; 0: the normal distribution.
double relative_error(int bits, int degrees, bool important) {
  const aq_format_desc d = k_quant(bits);
  std::mt19937 random(static_cast<uint32_t>(bits + 10 * degrees));
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> heavy(static_cast<float>(std::max(1, degrees)));
  double found = 0, plain = 0;
  for (int i = 0; i < 100; i++) {
    std::vector<float> w(256), h(256);
    for (float& x : w) x = 0.02f * (degrees > 0 ? heavy(random) : normal(random));
    for (float& x : h) x = important ? std::exp(normal(random)) : 1.0f;
    const auto params = fitted(d, w, h.data());
    if (i == 0) check_lattice(d, params);
    found += weighted_error(d, w, h.data(), params);
    plain += weighted_error(d, w, h.data(), plain_rule(d, w));
  }
  return found / plain;
}

}  // namespace

TEST_CASE("two-level scales that are fitted have much smaller errors than those of the extremes") {
  struct Case {
    int bits;
    double normal, heavy;  // upper bounds of the error, relative to the plain rule
  };
  for (const Case& c : {Case{2, 0.66, 0.50}, Case{3, 0.54, 0.48}, Case{4, 0.84, 0.72},
                        Case{5, 0.88, 0.77}, Case{6, 0.80, 0.72}}) {
    CAPTURE(c.bits);
    CHECK(relative_error(c.bits, 0, false) < c.normal);
    CHECK(relative_error(c.bits, 4, true) < c.heavy);
  }
}

TEST_CASE("no other scale and minimum of one group on its lattice is much better") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const int bits : {2, 3, 4}) {
    const aq_format_desc d = k_quant(bits);
    const aq::TwoLevelFit fit(d);
    double found = 0, least = 0;
    for (int i = 0; i < 40; i++) {
      std::vector<float> w(static_cast<std::size_t>(d.group_size)), h(w.size());
      for (float& x : w) x = 0.02f * normal(random);
      for (float& x : h) x = std::exp(normal(random));
      aq::TwoLevelParams p{1, 0, 0x1p-9f, d.sub_minimum_max > 0 ? 0x1.8p-9f : 0};
      if (bits == 4) p.d = 0x1p-12f;
      fit.refit(w.data(), d.group_size, h.data(), p);
      found += weighted_error(d, w, h.data(), {p});
      double best = std::numeric_limits<double>::infinity();
      for (int k = d.sub_min; k <= d.sub_max; k++)
        for (int m = 0; m <= d.sub_minimum_max && k != 0; m++)
          best = std::min(best, weighted_error(d, w, h.data(),
                                               {{static_cast<float>(k) * p.d,
                                                 static_cast<float>(m) * p.dmin, p.d, p.dmin}}));
      least += best;
    }
    CAPTURE(bits);
    CHECK(found >= least * (1 - 1e-6));
    CHECK(found < 1.12 * least);
  }
}

TEST_CASE("weights of any size and kind have parameters on the lattice, and finite values") {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (const int bits : {2, 3, 4, 5, 6}) {
    const aq_format_desc d = k_quant(bits);
    for (const float size : {1.0f, 1e-5f, 1e-30f, 1e-44f, 1e10f, 1e38f}) {
      std::vector<float> w(256), h(256, 0.0f);
      for (float& x : w) x = size * std::clamp(normal(random), -3.0f, 3.0f);
      for (const float* importance : std::vector<const float*>{nullptr, h.data()}) {
        check_lattice(d, fitted(d, w, importance));
        CHECK(std::isfinite(weighted_error(d, w, importance, fitted(d, w, importance))));
      }
    }
    const std::vector<float> zeros(256, 0.0f), negative(256, -0.7f), positive(256, 0.3f);
    for (const auto& w : {zeros, negative, positive}) {
      const auto params = fitted(d, w, nullptr);
      check_lattice(d, params);
      CHECK(weighted_error(d, w, nullptr, params) < 1e-5);
    }
    CHECK(fitted(d, zeros, nullptr)[0].scale == 1);
  }
}

TEST_CASE("a group that is fitted alone keeps d and dmin, and gets what its new weights need") {
  const aq_format_desc d = k_quant(4);
  std::vector<float> w(256);
  for (std::size_t i = 0; i < w.size(); i++) w[i] = static_cast<float>(i * 37 % 101) * 0.01f - 0.5f;
  const auto params = fitted(d, w, nullptr);
  aq::TwoLevelParams half = params[0];
  for (float& x : w) x /= 2;
  aq::TwoLevelFit(d).refit(w.data(), 32, nullptr, half);
  CHECK(half.d == params[0].d);
  CHECK(half.dmin == params[0].dmin);
  CHECK(half.scale == doctest::Approx(params[0].scale / 2).epsilon(0.05));
  CHECK(half.minimum == doctest::Approx(params[0].minimum / 2).epsilon(0.05));
}
