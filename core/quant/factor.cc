#include "quant/factor.h"

#include "base/error.h"

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

/// The upper triangular U with H^-1 = U^T U. With H = R R^T, R upper triangular, U is R^-1; R comes
/// from the Cholesky factor of H in reverse order. This takes half the work of inverting H and
/// factoring the inverse. Undefined if H is not positive definite. Holds at most two float64
/// matrices at once.
at::Tensor inverse_factor(const at::Tensor& h) {
  auto [lower, info] = at::linalg_cholesky_ex(h.flip({0, 1}).to(at::kDouble));
  if (info.item<int>() != 0) return {};
  at::Tensor inverse = at::eye(h.size(0), h.options().dtype(at::kDouble));
  at::linalg_solve_triangular_out(inverse, lower, inverse, /*upper=*/false);  // in place
  lower.reset();
  const at::Tensor upper = inverse.to(at::kFloat).flip({0, 1});
  return at::isfinite(upper).all().item<bool>() ? upper : at::Tensor();
}

}  // namespace

at::Tensor damp(const at::Tensor& hessians, double percdamp) {
  if (!at::isfinite(hessians).all().item<bool>())
    fail("a Hessian is not finite: the model's activations overflow on the calibration text");
  at::Tensor damped = hessians.clone();
  for (int64_t e = 0; e < damped.size(0); e++) add_damping(damped[e], percdamp);
  return damped;
}

Factors factor_hessians(const at::Tensor& hessians, double percdamp, bool actorder) {
  const int64_t count = hessians.size(0), n = hessians.size(1);
  Factors factors;
  factors.damped = damp(hessians, percdamp);
  factors.order = at::arange(n, hessians.options().dtype(at::kLong)).repeat({count, 1});
  factors.upper = at::empty({count, n, n}, hessians.options());
  for (int64_t e = 0; e < count; e++) {
    if (actorder) factors.order[e].copy_(hessians[e].diagonal().argsort(/*stable=*/true, 0, true));
    at::Tensor upper;
    double amount = percdamp;
    for (int attempt = 0; attempt < kAttempts && !upper.defined(); attempt++, amount *= 10) {
      if (attempt > 0) {
        factors.damped[e].copy_(hessians[e]);
        add_damping(factors.damped[e], amount);
      }
      upper = inverse_factor(permute(factors.damped[e], factors.order[e]));
    }
    factors.failed.push_back(!upper.defined());
    if (!upper.defined()) {  // also undefined if rounding to nearest was asked for
      factors.damped[e].copy_(hessians[e]);
      add_damping(factors.damped[e], percdamp);
    }
    factors.upper[e].copy_(upper.defined() ? upper : at::eye(n, hessians.options()));
  }
  return factors;
}

}  // namespace aqhost
