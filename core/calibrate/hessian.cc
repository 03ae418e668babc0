#include "calibrate/hessian.h"

#include "calibrate/gram.h"

namespace aqhost {
namespace {

bool in_bfloat16(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && has_bfloat16_products();
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
  if (in_bfloat16(x)) return add_gram(sum_, x, weights);
  const at::Tensor wide = x.to(at::kFloat);
  sum_.addmm_(weighted(wide, weights).t(), wide);
}

void Hessian::add_shift(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& original,
                        double scale) {
  if (x.size(0) == 0) return;
  if (!shift_.defined()) shift_ = at::zeros_like(sum_);
  if (in_bfloat16(x)) return add_shift_products(shift_, x, weights, original, scale);
  const at::Tensor wide = x.to(at::kFloat);
  shift_.addmm_(weighted(original.to(at::kFloat) - wide, weights).t(), wide, 1, scale);
}

Hessian Hessian::mix(const Hessian& own, const Hessian& all, int64_t min_tokens,
                     double mean_weight) {
  Hessian mixed = own;
  double share = 1;
  if (own.tokens() > 0 && all.tokens() > 0)
    share = static_cast<double>(min_tokens - own.tokens()) * mean_weight /
            static_cast<double>(all.tokens());
  mixed.sum_ = own.sum_ + all.sum_ * share;
  if (all.shift_.defined())
    mixed.shift_ = own.shift_.defined() ? own.shift_ + all.shift_ * share : all.shift_ * share;
  return mixed;
}

}  // namespace aqhost
