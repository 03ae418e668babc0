#include "calibrate/hessian.h"

namespace aqhost {

namespace {

at::Tensor weighted(const at::Tensor& x, const at::Tensor& weights) {
  return weights.defined() ? x * weights.unsqueeze(1) : x;
}

}  // namespace

void Hessian::add(const at::Tensor& x, const at::Tensor& weights) {
  if (x.size(0) == 0) return;
  tokens_ += x.size(0);
  weight_ +=
      weights.defined() ? weights.sum(at::kDouble).item<double>() : static_cast<double>(x.size(0));
  sum_.addmm_(weighted(x, weights).t(), x);
}

void Hessian::add_shift(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& original,
                        double scale) {
  if (x.size(0) == 0) return;
  if (!shift_.defined()) shift_ = at::zeros_like(sum_);
  shift_.addmm_(weighted(original - x, weights).t(), x, 1, scale);
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
