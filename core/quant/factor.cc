#include "quant/factor.h"

#include <algorithm>
#include <limits>

#include "quant/gpu.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr int kAttempts = 4;  // damping is 1, 10, 100, 1000 times percdamp

at::Tensor permute(const at::Tensor& h, const at::Tensor& order) {
  return h.index_select(0, order).index_select(1, order);
}

/// Sets dead columns to 1 and damps one Hessian, in place.
void add_damping(at::Tensor h, double amount) {
  at::Tensor diagonal = h.diagonal();
  diagonal.masked_fill_(diagonal == 0, 1);
  diagonal.add_(diagonal.mean() * amount);
}

/// The upper triangular U (f32) with H^-1 = U^T U, for H permuted by `order`. With H = R R^T, R
/// upper triangular, U is R^-1; R comes from the Cholesky factor of H in reverse order. This takes
/// half the work of inverting H and factoring the inverse. U has values that are not finite if H is
/// not positive definite. Holds at most two float64 matrices at once, or one in float64 and one in
/// float32.
at::Tensor inverse_factor(const at::Tensor& h, const at::Tensor& order) {
  at::Tensor wide = permute(h, order.flip(0)).to(at::kDouble);
  auto [lower, info] = at::linalg_cholesky_ex(wide);
  wide.reset();
  if (info.item<int>() != 0) return at::full_like(h, std::numeric_limits<float>::quiet_NaN());
  at::Tensor inverse = at::eye(h.size(0), h.options().dtype(at::kDouble));
  at::linalg_solve_triangular_out(inverse, lower, inverse, /*upper=*/false);  // in place
  lower.reset();
  return inverse.to(at::kFloat).flip({0, 1});
}

/// inverse_factor() of every matrix.
at::Tensor inverse_factors(const at::Tensor& damped, const at::Tensor& order) {
  if (damped.is_cuda()) return inverse_factors_on_gpu(damped, order);
  at::Tensor upper = at::empty_like(damped);
  for (int64_t e = 0; e < damped.size(0); e++) upper[e].copy_(inverse_factor(damped[e], order[e]));
  return upper;
}

/// Which of the matrices [E, n, n] (f32) have a value that is not finite. A float64 sum of float32
/// values is finite exactly if all of them are.
std::vector<bool> not_finite(const at::Tensor& matrices) {
  const at::Tensor finite = at::isfinite(matrices.sum({1, 2}, false, at::kDouble)).cpu();
  std::vector<bool> result;
  for (const bool f : span_of<bool>(finite)) result.push_back(!f);
  return result;
}

}  // namespace

void require_finite(const at::Tensor& matrices) {
  const std::vector<bool> bad = not_finite(matrices);
  const auto first = std::find(bad.begin(), bad.end(), true);
  if (first != bad.end()) throw NotFinite(static_cast<std::size_t>(first - bad.begin()));
}

at::Tensor damp(const at::Tensor& hessians, double percdamp) {
  require_finite(hessians);
  at::Tensor damped = hessians.clone();
  for (int64_t e = 0; e < damped.size(0); e++) add_damping(damped[e], percdamp);
  return damped;
}

Factors factor_hessians(const at::Tensor& hessians, double percdamp, bool actorder) {
  const int64_t count = hessians.size(0), n = hessians.size(1);
  Factors factors;
  factors.damped = damp(hessians, percdamp);
  factors.order = actorder ? hessians.diagonal(0, 1, 2).argsort(/*stable=*/true, 1, true)
                           : at::arange(n, hessians.options().dtype(at::kLong)).repeat({count, 1});
  factors.upper = inverse_factors(factors.damped, factors.order);
  factors.failed = not_finite(factors.upper);
  for (int64_t e = 0; e < count; e++) {
    double amount = percdamp;
    const auto place = static_cast<std::size_t>(e);
    for (int attempt = 1; attempt < kAttempts && factors.failed[place]; attempt++) {
      amount *= 10;
      const at::Tensor damped = hessians.narrow(0, e, 1).clone();
      add_damping(damped[0], amount);
      const at::Tensor upper = inverse_factors(damped, factors.order.narrow(0, e, 1));
      if (not_finite(upper)[0]) continue;
      factors.damped[e].copy_(damped[0]);
      factors.upper[e].copy_(upper[0]);
      factors.failed[place] = false;
    }
    if (factors.failed[place]) factors.upper[e].copy_(at::eye(n, hessians.options()));
  }
  return factors;
}

}  // namespace aqhost
