#pragma once

#include <ATen/ATen.h>

#include <cstddef>
#include <vector>

#include "base/error.h"

namespace aqhost {

/// A matrix of a batch of Hessians or shifts is not finite.
class NotFinite : public Error {
 public:
  explicit NotFinite(std::size_t matrix)
      : Error("a Hessian is not finite: the model's activations overflow on the calibration text"),
        matrix_(matrix) {}
  std::size_t matrix() const { return matrix_; }  // its index in the batch

 private:
  std::size_t matrix_;
};
/// Throws NotFinite if one of `matrices` [E, n, n] (f32) has a value that is not finite. Waits for
/// the device.
void require_finite(const at::Tensor& matrices);

/// A batch of Hessians prepared for solving.
struct Factors {
  at::Tensor order;   // [E, in] i64: columns in the order in which they are solved
  at::Tensor damped;  // [E, in, in] f32, in original column order: H + damping, dead columns at 1;
                      // where factorization failed, H with the initial damping
  at::Tensor upper;   // [E, in, in] f32, permuted by `order`: U with H^-1 = U^T U
  std::vector<bool> failed;  // E: not positive definite even with the largest damping; U is I

  /// The same on another device.
  Factors to(at::Device device) const {
    return {order.to(device), damped.to(device), upper.to(device), failed};
  }
};

/// `hessians` is [E, in, in] f32. Columns with H_ii = 0 are dead; their H_ii is set to 1. Damping
/// adds percdamp times the mean of the diagonal, and ten times more in each of up to three further
/// attempts if the factorization fails. With `actorder`, columns are solved in the order of falling
/// H_ii, and columns with equal H_ii in their original order. The factorization is computed in
/// float64. Throws NotFinite if a Hessian is not finite.
Factors factor_hessians(const at::Tensor& hessians, double percdamp, bool actorder);

/// Returns `hessians` with the initial damping of factor_hessians(), in place of its `damped`.
/// Throws NotFinite likewise.
at::Tensor damp(const at::Tensor& hessians, double percdamp);

}  // namespace aqhost
