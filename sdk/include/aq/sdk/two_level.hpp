// aq/sdk/two_level.hpp - fits two-level scales (AQ_FIT_TWO_LEVEL; see aq/quantizer.h).
#pragma once

#include <aq/sdk/numeric.hpp>
#include <cstring>
#include <limits>
#include <vector>

namespace aq {

/// The parameters of a group with two-level scales, in the order of its group_params.
struct TwoLevelParams {
  float scale = 1, minimum = 0, d = 1, dmin = 0;
};

/// Finds the parameters with a small sum of importance * (w - stored)^2. The steps:
///   1. For each group by itself, a real scale and minimum: begins with scales of several sizes,
///      and moves each to the least-squares fit of its codes, a few times.
///   2. d and dmin of the super-group, such that the largest of these have the largest k and m.
///   3. For each group, the best of the pairs (k, m) around the real ones.
///   4. d and dmin by least squares for these codes, k and m; then step 3 again. If this is better,
///      it is kept.
/// Weights are multiplied by a power of 2 first, so that their squares are normal numbers. Finite
/// weights of any size have finite parameters; those that float16 cannot scale saturate.
/// Thread-safe.
class TwoLevelFit {
 public:
  /// Borrows `desc`.
  explicit TwoLevelFit(const aq_format_desc& desc)
      : desc_(desc),
        least_(static_cast<float>(desc.int_min)),
        most_(static_cast<float>(desc.int_max)) {}

  /// Fits a super-group of n weights, which may end before it is full. `importance` is [n] or
  /// nullptr. Writes the parameters of each of its groups.
  void fit(const float* weights, int64_t n, const float* importance, TwoLevelParams* params) const {
    const Weights scaled(weights, n, importance, desc_.group_size);
    std::vector<Fit> fits(scaled.groups.size());
    for (std::size_t g = 0; g < fits.size(); g++) fits[g] = fit_real(scaled.groups[g]);
    Shared shared = largest(fits, scaled.unit);
    std::vector<Fit> best = on_lattice(scaled, shared, fits);
    for (int i = 0; i < kRefinements; i++) {
      const Shared moved = least_squares(best, shared, scaled.unit);
      if (moved.d == shared.d && moved.dmin == shared.dmin) break;
      std::vector<Fit> other = on_lattice(scaled, moved, best);
      if (!(total_error(other) < total_error(best))) break;
      best = std::move(other);
      shared = moved;
    }
    for (std::size_t g = 0; g < fits.size(); g++) params[g] = params_of(best[g], shared);
  }

  /// Fits scale and minimum of one group of n weights; `params` has d and dmin, which stay.
  void refit(const float* weights, int64_t n, const float* importance,
             TwoLevelParams& params) const {
    const Weights scaled(weights, n, importance, static_cast<int32_t>(n));
    const Shared shared{params.d, params.dmin};
    const Group& group = scaled.groups[0];
    params = params_of(lattice_fit(group, shared, scaled.unit, fit_real(group)), shared);
  }

  /// k and m of the parameters.
  int32_t k_of(const TwoLevelParams& p) const { return k_near(p.scale / p.d); }
  int32_t m_of(const TwoLevelParams& p) const { return m_near(p.minimum, p.dmin); }
  /// The allowed k that is nearest to x, and the allowed m with m * dmin nearest to `minimum`.
  int32_t k_near(float x) const {
    const auto low = static_cast<float>(desc_.sub_min), high = static_cast<float>(desc_.sub_max);
    const auto k = static_cast<int32_t>(std::rint(lesser(high, greater(low, x))));
    return k != 0 ? k : x < 0 && desc_.sub_min < 0 ? -1 : 1;
  }
  int32_t m_near(float minimum, float dmin) const {
    if (!(dmin > 0)) return 0;
    const auto most = static_cast<float>(desc_.sub_minimum_max);
    return static_cast<int32_t>(std::rint(lesser(most, greater(0, minimum / dmin))));
  }

 private:
  static constexpr int kLanes = 4;
  using Lanes [[gnu::vector_size(kLanes * sizeof(float))]] = float;  // added side by side
  static constexpr int kRounds = 2;         // moves of each start of step 1
  static constexpr int kRefinements = 3;    // of d and dmin
  static constexpr int kAround = 2;         // distance of the k that are tried from the nearest one
  static constexpr int kMinimumRounds = 3;  // moves of m for one k

  /// d and dmin, as they are stored.
  struct Shared {
    float d = 1, dmin = 0;
  };

  /// The weights of a group, brought to about 1, and their importance, of which the largest in the
  /// super-group is 1. Both are filled with zeros to whole lanes.
  struct Group {
    const float *x, *h;
    int64_t n;                    // in whole lanes
    float low, high;              // of the weights
    double sum_h = 0, sum_x = 0;  // sum of h, and of h * x
  };

  struct Weights {
    float unit = 1;  // what the weights were multiplied with
    std::vector<float> x, h;
    std::vector<Group> groups;

    Weights(const float* weights, int64_t n, const float* importance, int32_t group_size) {
      const float most = Extent(weights, n).absmax();
      if (most > 0) unit = SmallFloat::power(-std::clamp(std::ilogb(most), -126, 126));
      float most_h = 0;
      for (int64_t i = 0; importance != nullptr && i < n; i++)
        most_h = greater(most_h, importance[i]);
      const int64_t padded = (int64_t{group_size} + kLanes - 1) / kLanes * kLanes;
      const int64_t count = (n + group_size - 1) / group_size;
      x.assign(static_cast<std::size_t>(count * padded), 0);
      h.assign(x.size(), 0);
      for (int64_t g = 0; g < count; g++) {
        const int64_t begin = g * group_size, size = std::min<int64_t>(group_size, n - begin);
        Group group{x.data() + g * padded, h.data() + g * padded, padded, weights[begin] * unit,
                    weights[begin] * unit};
        for (int64_t i = 0; i < size; i++) {
          float& mine = x[static_cast<std::size_t>(g * padded + i)];
          float& weight = h[static_cast<std::size_t>(g * padded + i)];
          mine = weights[begin + i] * unit;
          weight = most_h > 0 ? importance[begin + i] / most_h : 1;
          group.low = lesser(group.low, mine);
          group.high = greater(group.high, mine);
          group.sum_h += static_cast<double>(weight);
          group.sum_x += static_cast<double>(weight) * static_cast<double>(mine);
        }
        groups.push_back(group);
      }
    }
  };

  /// A scale and a minimum (in units of the scaled weights), and sums over the codes q that they
  /// give: of the weighted squared error, h q, h q^2 and h q x.
  struct Fit {
    float scale = 0, minimum = 0;
    int32_t k = 1, m = 0;  // once it is on the lattice
    double error = std::numeric_limits<double>::infinity();
    double q = 0, qq = 0, qx = 0, sum_h = 0, sum_x = 0;
  };

  bool has_minima() const { return desc_.sub_minimum_max > 0; }

  Fit evaluate(const Group& group, float scale, float minimum) const {
    constexpr float kRounding = 0x1.8p23f;  // see round_to_integer()
    // within what keeps the products of x finite
    const float inverse = lesser(0x1p100f, greater(-0x1p100f, 1 / scale));
    const Lanes least = Lanes{} + least_, most = Lanes{} + most_;
    Lanes error{}, q{}, qq{}, qx{};
    for (int64_t i = 0; i < group.n; i += kLanes) {
      Lanes x, h;
      std::memcpy(&x, group.x + i, sizeof x);
      std::memcpy(&h, group.h + i, sizeof h);
      Lanes code = (x + minimum) * inverse;
      code = code < least ? least : code;
      code = code > most ? most : code;
      code = (code + kRounding) - kRounding;
      const Lanes off = x - (code * scale - minimum), weighted = h * code;
      error += h * (off * off);
      q += weighted;
      qq += weighted * code;
      qx += weighted * x;
    }
    Fit fit{.scale = scale, .minimum = minimum};
    fit.error = sum(error);
    fit.q = sum(q);
    fit.qq = sum(qq);
    fit.qx = sum(qx);
    fit.sum_h = group.sum_h;
    fit.sum_x = group.sum_x;
    return fit;
  }
  static double sum(const Lanes& lanes) {
    return static_cast<double>((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
  }

  /// Step 1.
  Fit fit_real(const Group& group) const {
    Fit best;
    if (group.low == 0 && group.high == 0) return best;
    const float one = 1;
    const float* factors = desc_.n_search > 0 ? desc_.search : &one;
    const uint32_t count = desc_.n_search > 0 ? desc_.n_search : 1;
    for (uint32_t i = 0; i < count; i++) {
      if (has_minima()) {
        const float low = lesser(group.low, 0), middle = (low + group.high) / 2;
        // a group of one number needs a minimum only; its scale must not widen those of the others
        const float range = group.high > low ? group.high - low : -low * 0x1p-10f;
        const float half = factors[i] * range / 2;
        descend(group, half * 2 / (most_ - least_), greater(0, half - middle), best);
      } else {
        const float most = greater(-group.low, group.high);
        const float scale = factors[i] * most / greater(-least_, most_);
        descend(group, scale, 0, best);
        if (desc_.sub_min < 0) descend(group, -scale, 0, best);
      }
    }
    return best;
  }

  /// Moves a scale and a minimum to the least-squares fit of their codes, kRounds times. Replaces
  /// `best` by the best on the way.
  void descend(const Group& group, float scale, float minimum, Fit& best) const {
    for (int round = 0; round <= kRounds && scale != 0; round++) {
      const Fit fit = evaluate(group, scale, minimum);
      if (fit.error < best.error) best = fit;
      double next = fit.qq > 0 ? fit.qx / fit.qq : 0, least = 0;
      if (const double bend = fit.sum_h * fit.qq - fit.q * fit.q; has_minima() && bend > 0) {
        const double slope = (fit.sum_h * fit.qx - fit.sum_x * fit.q) / bend;
        least = (slope * fit.q - fit.sum_x) / fit.sum_h;
        if (least > 0)
          next = slope;
        else
          least = 0;
      }
      if (!std::isfinite(next) || (desc_.sub_min >= 0 && next < 0)) return;
      scale = static_cast<float>(next);
      minimum = static_cast<float>(least);
    }
  }

  /// Step 2.
  Shared largest(const std::vector<Fit>& fits, float unit) const {
    float scale = 0, minimum = 0;
    for (const Fit& fit : fits) {
      if (std::fabs(fit.scale) > std::fabs(scale)) scale = fit.scale;
      minimum = greater(minimum, fit.minimum);
    }
    const auto end =
        static_cast<float>(-desc_.sub_min > desc_.sub_max ? desc_.sub_min : desc_.sub_max);
    Shared shared;
    if (scale != 0) shared.d = rounded(scale / end / unit);
    if (!has_minima()) return shared;
    shared.dmin = minimum > 0 ? rounded(minimum / static_cast<float>(desc_.sub_minimum_max) / unit)
                              : std::fabs(shared.d);
    return shared;
  }
  float rounded(float x) const { return std::copysign(round_scale(desc_, std::fabs(x)), x); }

  /// Step 3, for each group.
  std::vector<Fit> on_lattice(const Weights& weights, const Shared& shared,
                              const std::vector<Fit>& fits) const {
    std::vector<Fit> found;
    for (std::size_t g = 0; g < fits.size(); g++)
      found.push_back(lattice_fit(weights.groups[g], shared, weights.unit, fits[g]));
    return found;
  }

  Fit lattice_fit(const Group& group, const Shared& shared, float unit, const Fit& near) const {
    Fit best;
    best.error = 0;
    if (group.low == 0 && group.high == 0) return best;
    best.error = std::numeric_limits<double>::infinity();
    const float d = shared.d * unit, dmin = shared.dmin * unit;
    const int32_t middle = k_near(near.scale / d);
    for (int32_t k = middle - kAround; k <= middle + kAround; k++) {
      if (k == 0 || k < desc_.sub_min || k > desc_.sub_max) continue;
      const float scale = static_cast<float>(k) * d;
      int32_t m = m_near(near.minimum, dmin);
      for (int round = 0; round < kMinimumRounds; round++) {
        Fit fit = evaluate(group, scale, static_cast<float>(m) * dmin);
        fit.k = k;
        fit.m = m;
        if (fit.error < best.error) best = fit;
        if (!has_minima() || !(fit.sum_h > 0)) break;
        const double wanted = (static_cast<double>(scale) * fit.q - fit.sum_x) / fit.sum_h;
        const int32_t next = m_near(static_cast<float>(wanted), dmin);
        if (next == m) break;
        m = next;
      }
    }
    return best;
  }

  static double total_error(const std::vector<Fit>& fits) {
    double sum = 0;
    for (const Fit& fit : fits) sum += fit.error;
    return sum;
  }

  /// Step 4: the minimum of sum h (x - d k q + dmin m)^2.
  Shared least_squares(const std::vector<Fit>& fits, Shared shared, float unit) const {
    double kk = 0, km = 0, mm = 0, kx = 0, mx = 0;
    for (const Fit& fit : fits) {
      const double k = fit.k, m = fit.m;
      kk += k * k * fit.qq;
      km += k * m * fit.q;
      mm += m * m * fit.sum_h;
      kx += k * fit.qx;
      mx += m * fit.sum_x;
    }
    const double bend = kk * mm - km * km;
    double d = kk > 0 ? kx / kk : 0, dmin = 0;
    if (bend > 0) {
      d = (kx * mm - mx * km) / bend;
      dmin = (kx * km - mx * kk) / bend;
    }
    const auto in_units = [&](double x) {
      return static_cast<float>(x / static_cast<double>(unit));
    };
    if (std::isfinite(in_units(d)) && d * static_cast<double>(shared.d) > 0)
      shared.d = rounded(in_units(d));
    if (std::isfinite(in_units(dmin)) && dmin > 0) shared.dmin = rounded(in_units(dmin));
    return shared;
  }

  static TwoLevelParams params_of(const Fit& fit, const Shared& shared) {
    return {static_cast<float>(fit.k) * shared.d, static_cast<float>(fit.m) * shared.dmin, shared.d,
            shared.dmin};
  }

  const aq_format_desc& desc_;
  const float least_, most_;
};

}  // namespace aq
