#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace aqhost {

/// A batch of Hessians made ready for solving.
struct Factors {
  at::Tensor order;   // [E, in] i64: columns in the order they are solved
  at::Tensor damped;  // [E, in, in] f32, in original column order: H + damping, dead columns at 1;
                      // damped at first where it failed
  at::Tensor upper;   // [E, in, in] f32, permuted by `order`: U with H^-1 = U^T U
  std::vector<bool> failed;  // E: not positive definite even when damped most; U is the identity
};

/// hessians [E, in, in] f32. Columns with H_ii = 0 are dead: 1 takes the place of H_ii. percdamp
/// times the mean diagonal is added, tenfold up to three times where the factorization fails. With
/// `actorder` columns are solved by falling H_ii, equal ones in their order. Factors in float64.
/// Error if a Hessian is not finite.
Factors factor_hessians(const at::Tensor& hessians, double percdamp, bool actorder);

/// hessians damped as factor_hessians() does at first, in place of `damped` there.
at::Tensor damp(const at::Tensor& hessians, double percdamp);

}  // namespace aqhost
