#include "quant/reference.h"

#include <algorithm>
#include <aq/sdk/numeric.hpp>
#include <aq/sdk/two_level.hpp>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

namespace aqhost {
namespace {

using Matrix = std::vector<std::vector<double>>;

struct Params {
  float scale = 1, zero = 0;  // with two-level scales, zero is the minimum
};
struct Rounded {
  uint32_t code = 0;
  float value = 0;    // after multiplication by the step
  double margin = 0;  // distance of w / step from the nearest other code
};

/// The nearest code, found by trying all of them (aq/quantizer.h).
Rounded round_to(const FormatDesc& d, float w, const Params& p, float global) {
  const float minimum = d.two_level() ? p.zero : 0, zero = d.two_level() ? 0 : p.zero;
  const float step = p.scale / global, t = d.two_level() ? (w + minimum) / step : w / step;
  const auto grid = [&](uint32_t code) {
    return d.element_kind == AQ_ELEM_TABLE
               ? d.values[code]
               : static_cast<float>(static_cast<int32_t>(code) + d.int_min) - zero;
  };
  const uint32_t count = d.element_kind == AQ_ELEM_TABLE
                             ? 1u << d.element_bits
                             : static_cast<uint32_t>(d.int_max - d.int_min + 1);
  const auto distance = [&](uint32_t code) {
    return std::abs(static_cast<double>(t) - static_cast<double>(grid(code)));
  };
  uint32_t best = 0;
  double second = std::numeric_limits<double>::infinity();
  for (uint32_t code = 1; code < count; code++) {
    const bool same = grid(code) == grid(best);  // -0 is the code of small negative numbers
    const bool better = same ? std::signbit(grid(best)) != std::signbit(t) &&
                                   std::signbit(grid(code)) == std::signbit(t)
                             : distance(code) < distance(best);
    if (!same) second = std::min(second, better ? distance(best) : distance(code));
    if (better) best = code;
  }
  const float value = grid(best) * step;
  return {best, d.two_level() ? value - minimum : value, (second - distance(best)) / 2};
}

Params fit(const FormatDesc& d, const std::vector<float>& w, std::span<const float> importance,
           float global) {
  const float least = std::min(0.0f, *std::min_element(w.begin(), w.end()));
  const float most = std::max(0.0f, *std::max_element(w.begin(), w.end()));
  if (least == 0 && most == 0) return {};
  Params best;
  double least_error = std::numeric_limits<double>::infinity();
  const float one = 1.0f;
  for (const float f : d.n_search == 0 ? std::span(&one, 1) : d.search_factors()) {
    Params p;
    if (d.fit_rule == AQ_FIT_MINMAX) {
      p.scale = aq::round_scale(
          d, f * ((most - least) * global / static_cast<float>(d.int_max - d.int_min)));
      p.zero =
          std::clamp(std::nearbyint(static_cast<float>(d.int_min) - f * least / (p.scale / global)),
                     static_cast<float>(d.int_min), static_cast<float>(d.int_max));
    } else {
      p.scale = aq::round_scale(d, f * (std::max(-least, most) * global / d.scale_divisor));
      if (d.signed_scale() && most > -least) p.scale = -p.scale;
    }
    double error = 0;
    for (std::size_t i = 0; i < w.size(); i++) {
      const double off = w[i] - round_to(d, w[i], p, global).value;
      error += (importance.empty() ? 1.0 : static_cast<double>(importance[i])) * (off * off);
    }
    if (error < least_error) {
      least_error = error;
      best = p;
    }
  }
  return best;
}

/// Fits a super-group of two-level scales, or, if `first` is false, one of its groups, whose d and
/// dmin stay. `stored` has the parameters of its groups.
void fit_two_level(const FormatDesc& d, const std::vector<float>& w,
                   std::span<const float> importance, bool first, float* stored) {
  const aq::TwoLevelFit fit(d);
  const float* h = importance.empty() ? nullptr : importance.data();
  const auto n = static_cast<int64_t>(w.size());
  std::vector<aq::TwoLevelParams> params(static_cast<std::size_t>(first ? d.groups(n) : 1));
  if (first) {
    fit.fit(w.data(), n, h, params.data());
  } else {
    params[0] = {stored[0], stored[1], stored[2], stored[3]};
    fit.refit(w.data(), n, h, params[0]);
  }
  for (const aq::TwoLevelParams& p : params)
    for (const float value : {p.scale, p.minimum, p.d, p.dmin}) *stored++ = value;
}

float fit_global(const FormatDesc& d, std::span<const float> weights) {
  float most = 0;
  for (const float w : weights) most = std::max(most, std::fabs(w));
  return d.global_scale() && most > 0 ? d.global_max / most : 1.0f;
}

/// The lower triangular L with L L^T = a; there is none if a is not positive definite.
std::optional<Matrix> cholesky(const Matrix& a) {
  const std::size_t n = a.size();
  Matrix l(n, std::vector<double>(n, 0));
  for (std::size_t i = 0; i < n; i++)
    for (std::size_t j = 0; j <= i; j++) {
      double sum = a[i][j];
      for (std::size_t k = 0; k < j; k++) sum -= l[i][k] * l[j][k];
      if (i == j && !(sum > 0)) return std::nullopt;
      l[i][j] = i == j ? std::sqrt(sum) : sum / l[j][j];
    }
  return l;
}

/// l^-T l^-1, the inverse of l l^T.
Matrix inverse(const Matrix& l) {
  const std::size_t n = l.size();
  Matrix inv(n, std::vector<double>(n, 0)), out = inv;
  for (std::size_t c = 0; c < n; c++)  // computes column c of l^-1
    for (std::size_t i = c; i < n; i++) {
      double sum = i == c ? 1 : 0;
      for (std::size_t k = c; k < i; k++) sum -= l[i][k] * inv[k][c];
      inv[i][c] = sum / l[i][i];
    }
  for (std::size_t i = 0; i < n; i++)
    for (std::size_t j = 0; j < n; j++)
      for (std::size_t k = std::max(i, j); k < n; k++) out[i][j] += inv[k][i] * inv[k][j];
  return out;
}

Matrix damped(std::span<const float> hessian, std::size_t n, double percdamp) {
  Matrix h(n, std::vector<double>(n));
  double mean = 0;
  for (std::size_t i = 0; i < n; i++) {
    for (std::size_t j = 0; j < n; j++) h[i][j] = hessian[i * n + j];
    if (h[i][i] == 0) h[i][i] = 1;
    mean += h[i][i] / static_cast<double>(n);
  }
  for (std::size_t i = 0; i < n; i++) h[i][i] += percdamp * mean;
  return h;
}

/// The weights of errors where no Hessian gives them (see fit_groups()), for the weights of a
/// group.
std::vector<float> weights_by_size(const FormatDesc& d, const std::vector<float>& w) {
  double most = 0;
  for (const float x : w) most = std::max(most, std::abs(static_cast<double>(x)));
  if (most == 0 || d.element_bits > 4) return std::vector<float>(w.size(), 1.0f);
  std::vector<double> squares;
  for (const float x : w) squares.push_back(std::pow(static_cast<double>(x) / most, 2));
  const double mean =
      std::accumulate(squares.begin(), squares.end(), 0.0) / static_cast<double>(w.size());
  std::vector<float> result;
  for (const double square : squares) result.push_back(static_cast<float>(square + mean));
  return result;
}

}  // namespace

ReferenceResult reference_rtn(const FormatDesc& d, std::span<const float> weights, int64_t cols,
                              std::span<const float> importance) {
  const auto n = static_cast<std::size_t>(cols);
  const std::size_t width = d.group_size < 0 ? n : static_cast<std::size_t>(d.group_size);
  const float global = fit_global(d, weights);
  ReferenceResult r;
  for (std::size_t row = 0; row < weights.size() / n; row++)
    for (std::size_t begin = 0; begin < n; begin += width) {
      const std::size_t super = d.two_level() ? static_cast<std::size_t>(d.super_size) : 0;
      if (super > 0 && begin % super == 0) {
        const std::size_t size = std::min(super, n - begin), at = r.params.size();
        const auto first = weights.begin() + static_cast<std::ptrdiff_t>(row * n + begin);
        r.params.resize(at + static_cast<std::size_t>(d.groups(static_cast<int64_t>(size))) * 4);
        fit_two_level(d, {first, first + static_cast<std::ptrdiff_t>(size)},
                      importance.empty() ? importance : importance.subspan(begin, size), true,
                      &r.params[at]);
      }
      const std::size_t size = std::min(width, n - begin);
      const auto first = weights.begin() + static_cast<std::ptrdiff_t>(row * n + begin);
      const std::vector<float> group(first, first + static_cast<std::ptrdiff_t>(size));
      const std::vector<float> by_size = weights_by_size(d, group);
      Params p;
      if (d.two_level()) {
        const float* mine = &r.params[(row * ((n + width - 1) / width) + begin / width) * 4];
        p = {mine[0], mine[1]};
      } else {
        p = fit(d, group, importance.empty() ? by_size : importance.subspan(begin, size), global);
        r.params.push_back(p.scale);
        if (d.group_params > 1) r.params.push_back(p.zero);
      }
      for (const float w : group) {
        const Rounded q = round_to(d, w, p, global);
        r.codes.push_back(q.code);
        r.margin.push_back(q.margin);
      }
    }
  return r;
}

ReferenceResult reference_gptq(const FormatDesc& d, std::span<const float> weights, int64_t cols,
                               std::span<const float> hessian, const GptqOptions& options) {
  const auto n = static_cast<std::size_t>(cols);
  const std::size_t rows = weights.size() / n;
  const std::size_t width = d.group_size < 0 ? n : static_cast<std::size_t>(d.group_size);
  const float global = fit_global(d, weights);

  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (options.actorder)
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return hessian[a * n + a] > hessian[b * n + b];
    });

  Matrix h;
  std::optional<Matrix> l;
  double amount = options.percdamp;
  for (int attempt = 0; attempt < 4 && !l; attempt++, amount *= 10) {
    h = damped(hessian, n, amount);
    Matrix permuted = h;
    for (std::size_t i = 0; i < n; i++)
      for (std::size_t j = 0; j < n; j++) permuted[i][j] = h[order[i]][order[j]];
    l = cholesky(permuted);
  }
  const Matrix first = damped(hessian, n, options.percdamp);
  std::vector<float> importance;  // if no damping helps, groups are fitted with the initial damping
  for (std::size_t i = 0; i < n; i++)
    importance.push_back(static_cast<float>((l ? h : first)[i][i]));

  ReferenceResult r = reference_rtn(d, weights, cols, importance);
  r.order.assign(order.begin(), order.end());
  r.row_loss.assign(rows, 0);
  r.failed = !l;
  if (!l) return r;
  const Matrix u = *cholesky(inverse(*l));  // lower triangular: the transpose of U

  const std::size_t groups = (n + width - 1) / width;
  for (std::size_t row = 0; row < rows; row++) {
    std::vector<double> w(n);
    for (std::size_t i = 0; i < n; i++) w[i] = weights[row * n + order[i]];
    for (std::size_t i = 0; i < n; i++) {
      const std::size_t column = order[i];
      float* stored = &r.params[(row * groups + column / width) * d.group_params];
      if (!options.actorder && i % width == 0) {
        const bool opens = d.two_level() && i % static_cast<std::size_t>(d.super_size) == 0;
        const std::size_t end =
            std::min(i + (opens ? static_cast<std::size_t>(d.super_size) : width), n);
        const std::vector<float> group(w.begin() + static_cast<std::ptrdiff_t>(i),
                                       w.begin() + static_cast<std::ptrdiff_t>(end));
        const auto h_of_group = std::span(importance).subspan(i, end - i);
        if (d.two_level()) {
          fit_two_level(d, group, h_of_group, opens, stored);
        } else {
          const Params p = fit(d, group, h_of_group, global);
          stored[0] = p.scale;
          if (d.group_params > 1) stored[1] = p.zero;
        }
      }
      const Params p{stored[0], d.group_params > 1 ? stored[1] : 0.0f};
      const Rounded q = round_to(d, static_cast<float>(w[i]), p, global);
      r.codes[row * n + column] = q.code;
      r.margin[row * n + column] = q.margin;
      const double error = (w[i] - q.value) / u[i][i];
      r.row_loss[row] += error * error / 2;
      for (std::size_t j = i; j < n; j++) w[j] -= error * u[j][i];
    }
  }
  return r;
}

}  // namespace aqhost
