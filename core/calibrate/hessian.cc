#include "calibrate/hessian.h"

namespace aqhost {

void Hessian::add(const at::Tensor& x, const at::Tensor& weights) {
  if (x.size(0) == 0) return;
  tokens_ += x.size(0);
  if (!weights.defined()) {
    weight_ += static_cast<double>(x.size(0));
    sum_.addmm_(x.t(), x);
    return;
  }
  weight_ += weights.sum(at::kDouble).item<double>();
  sum_.addmm_((x * weights.unsqueeze(1)).t(), x);
}

at::Tensor mix_starved(const Hessian& own, const Hessian& all, int64_t min_tokens,
                       double mean_weight) {
  if (own.tokens() == 0 || all.tokens() == 0) return all.sum();
  const double missing = static_cast<double>(min_tokens - own.tokens());
  return own.sum() + all.sum() * (missing * mean_weight / static_cast<double>(all.tokens()));
}

}  // namespace aqhost
