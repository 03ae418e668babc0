#include "calibrate/hessian.h"

#include "calibrate/gram.h"
#include "tensor/bfloat16_tile.h"
#include "tensor/kernels.h"

namespace aqhost {
namespace {

bool in_bfloat16(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kBFloat16 && has_bfloat16_products();
}

bool on_tensor_cores(const at::Tensor& x) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16;
}

/// sum += scale a^T b for bfloat16 factors, added in float32 by the tensor cores of a GPU.
void add_products(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, double scale) {
  at::addmm_out(sum, sum, a.t(), b, at::kFloat, 1, scale);
}

/// (a - b) factors for bfloat16 a and b [n, features] on a GPU, computed in float32. Undefined b
/// stands for 0, and undefined factors [n] for 1.
at::Tensor scaled_rows(const at::Tensor& a, const at::Tensor& b, const at::Tensor& factors) {
  const at::Tensor from = a.contiguous();
  const at::Tensor less = b.defined() ? b.contiguous() : b;
  const at::Tensor by = factors.defined() ? factors.contiguous() : factors;
  at::Tensor out = at::empty_like(from);
  enqueue(&GpuKernels::scale_rows, from,
          cuda::ScaleRowsArgs{from.data_ptr(), less.defined() ? less.data_ptr() : nullptr,
                              by.defined() ? by.data_ptr<float>() : nullptr, out.data_ptr(),
                              from.size(0), from.size(1)});
  return out;
}

at::Tensor weighted(const at::Tensor& x, const at::Tensor& weights) {
  return weights.defined() ? x * weights.unsqueeze(1) : x;
}

}  // namespace

void Hessian::add(const at::Tensor& x, const at::Tensor& weights) {
  if (x.size(0) == 0) return;
  tokens_ += x.size(0);
  weight_ = weight_ + (weights.defined() ? weights.sum(at::kDouble)
                                         : at::scalar_tensor(x.size(0), weight_.options()));
  if (on_tensor_cores(
          x)) {  // both factors are rounded alike, so the sum stays positive semidefinite
    const at::Tensor y = weights.defined() ? scaled_rows(x, {}, weights.sqrt()) : x;
    return add_products(sum_, y, y, 1);
  }
  if (in_bfloat16(x)) return add_gram(sum_, x, weights);
  const at::Tensor wide = x.to(at::kFloat);
  sum_.addmm_(weighted(wide, weights).t(), wide);
}

void Hessian::add_shift(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& original,
                        double scale) {
  if (x.size(0) == 0) return;
  if (!shift_.defined()) shift_ = at::zeros_like(sum_);
  if (on_tensor_cores(x)) return add_products(shift_, scaled_rows(original, x, weights), x, scale);
  if (in_bfloat16(x)) return add_shift_products(shift_, x, weights, original, scale);
  const at::Tensor wide = x.to(at::kFloat);
  shift_.addmm_(weighted(original.to(at::kFloat) - wide, weights).t(), wide, 1, scale);
}

std::vector<double> Hessian::weights_of(const std::vector<Hessian>& hessians) {
  if (hessians.empty()) return {};
  std::vector<at::Tensor> weights;
  for (const Hessian& h : hessians) weights.push_back(h.weight_);
  const at::Tensor all = at::stack(weights).cpu();
  const double* values = all.data_ptr<double>();
  return {values, values + all.numel()};
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
