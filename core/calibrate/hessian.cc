#include "calibrate/hessian.h"

#include <algorithm>

#include "base/error.h"
#include "calibrate/gram.h"
#include "tensor/bfloat16_tile.h"

namespace aqhost {
namespace {

constexpr int64_t kGpuRows = 1 << 13;  // rows of float32 copies at once

bool in_bfloat16(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kBFloat16 && has_bfloat16_products();
}

/// sum += scale a^T b for bfloat16 factors, added in float32 by the tensor cores of a GPU.
void add_products(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, double scale) {
  sum.add_(at::mm(a.to(at::kBFloat16).t(), b, at::kFloat), scale);
}

/// Calls body(x, weights, original) for parts of a GPU's inputs; all three belong to the same
/// tokens.
template <typename Body>
void for_row_parts(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& original,
                   Body body) {
  for (int64_t begin = 0; begin < x.size(0); begin += kGpuRows) {
    const int64_t n = std::min(kGpuRows, x.size(0) - begin);
    const auto part = [&](const at::Tensor& t) { return t.defined() ? t.narrow(0, begin, n) : t; };
    body(part(x), part(weights), part(original));
  }
}

bool on_tensor_cores(const at::Tensor& x) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16;
}

at::Tensor weighted(const at::Tensor& x, const at::Tensor& weights) {
  return weights.defined() ? x * weights.unsqueeze(1) : x;
}

}  // namespace

void Hessian::add(const at::Tensor& x, const at::Tensor& weights) {
  if (x.size(0) == 0) return;
  tokens_ += x.size(0);
  weight_ +=
      weights.defined() ? weights.sum(at::kDouble).item<double>() : static_cast<double>(x.size(0));
  if (on_tensor_cores(x))  // both factors are rounded alike, so the sum stays positive semidefinite
    return for_row_parts(x, weights, {}, [&](const at::Tensor& part, const at::Tensor& s, auto&&) {
      const at::Tensor y = s.defined() ? weighted(part, s.sqrt()).to(at::kBFloat16) : part;
      add_products(sum_, y, y, 1);
    });
  if (in_bfloat16(x)) return add_gram(sum_, x, weights);
  const at::Tensor wide = x.to(at::kFloat);
  sum_.addmm_(weighted(wide, weights).t(), wide);
}

void Hessian::add_shift(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& original,
                        double scale) {
  if (x.size(0) == 0) return;
  if (!shift_.defined()) shift_ = at::zeros_like(sum_);
  if (on_tensor_cores(x))
    return for_row_parts(
        x, weights, original,
        [&](const at::Tensor& part, const at::Tensor& s, const at::Tensor& part_original) {
          const at::Tensor difference = part_original.to(at::kFloat) - part;
          add_products(shift_, weighted(difference, s), part, scale);
        });
  if (in_bfloat16(x)) return add_shift_products(shift_, x, weights, original, scale);
  const at::Tensor wide = x.to(at::kFloat);
  shift_.addmm_(weighted(original.to(at::kFloat) - wide, weights).t(), wide, 1, scale);
}

void Hessian::check_finite(const std::string& module) const {
  const auto finite = [](const at::Tensor& t) {
    return !t.defined() || at::isfinite(t).all().item<bool>();
  };
  if (!finite(sum_) || !finite(shift_))
    fail(
        "{}: the Hessian of its inputs is not finite: the model's activations overflow on the "
        "calibration text",
        module);
}

double Hessian::share_of_all(int64_t own_tokens, int64_t all_tokens, int64_t min_tokens,
                             double mean_weight) {
  if (own_tokens == 0 || all_tokens == 0) return 1;
  return static_cast<double>(min_tokens - own_tokens) * mean_weight /
         static_cast<double>(all_tokens);
}

Hessian Hessian::mix(const Hessian& own, const Hessian& all, double share) {
  Hessian mixed = own;
  mixed.sum_ = own.sum_ + all.sum_ * share;
  if (all.shift_.defined())
    mixed.shift_ = own.shift_.defined() ? own.shift_ + all.shift_ * share : all.shift_ * share;
  return mixed;
}

}  // namespace aqhost
