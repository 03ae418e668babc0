#include "quant/quantize.h"

#include "base/error.h"
#include "quant/factor.h"
#include "quant/gpu.h"
#include "quant/groups.h"
#include "quant/solve.h"
#include "quant/solve_by_callbacks.h"
#include "quant/sweep.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

QuantizedBatch make_batch(const FormatDesc& desc, const at::Tensor& weights) {
  const int64_t count = weights.size(0), rows = weights.size(1), in = weights.size(2);
  if (in % desc.vector_dim != 0)
    fail("{} input features, codes of this format stand for {} weights each", in, desc.vector_dim);
  QuantizedBatch batch;
  batch.cols = in;
  batch.codes = at::empty({count, rows, in / desc.vector_dim},
                          weights.options().dtype(desc.code_bytes() == 1 ? at::kByte : at::kShort));
  batch.values = at::empty({count, rows, in}, weights.options());
  batch.loss = at::zeros({count, rows}, weights.options().dtype(at::kDouble));
  batch.rtn_loss = at::zeros_like(batch.loss);
  return batch;
}

/// 1/2 d H d^T for every row, with d = weights - values [E, out, in].
at::Tensor row_losses(const at::Tensor& weights, const at::Tensor& values,
                      const at::Tensor& damped) {
  const at::Tensor d = weights - values;
  return at::bmm(d, damped).mul_(d).sum(2, false, at::kDouble).mul_(0.5);
}

/// weights + feedback weights M H^-1 for shifts M, with H^-1 = U^T U. Weights whose H has no factor
/// stay as they are.
at::Tensor shifted(const at::Tensor& weights, const at::Tensor& shifts, double feedback,
                   const Factors& factors) {
  const at::Tensor order = factors.order.unsqueeze(1).expand_as(weights);
  at::Tensor change = at::bmm(weights, shifts).mul_(feedback).gather(2, order);
  change = at::bmm(at::bmm(change, factors.upper.transpose(1, 2)), factors.upper);
  for (int64_t e = 0; e < weights.size(0); e++)
    if (factors.failed[static_cast<std::size_t>(e)]) change[e].zero_();
  return weights + at::empty_like(change).scatter_(2, order, change);
}

at::Tensor diagonals(const at::Tensor& damped) { return damped.diagonal(0, 1, 2).contiguous(); }

QuantizedBatch round_nearest(const Format& format, const at::Tensor& weights,
                             const at::Tensor& importance) {
  QuantizedBatch batch = make_batch(format.desc(), weights);
  batch.tensor_params = fit_tensors(format, weights, importance);
  batch.params = fit_groups(format, weights, importance, batch.tensor_params);
  round_groups(format, weights, batch);
  batch.rtn.assign(static_cast<std::size_t>(weights.size(0)), true);
  return batch;
}

}  // namespace

QuantizedBatch quantize_rtn(const Format& format, const at::Tensor& weights,
                            const at::Tensor& hessians, const GptqOptions& options) {
  if (weights.is_cuda() && !gpu_rounds(format.desc())) {
    const at::Tensor h = hessians.defined() ? hessians.cpu() : hessians;
    return quantize_rtn(format, weights.cpu(), h, options).to(weights.device());
  }
  const at::Tensor w = weights.contiguous();
  if (!hessians.defined()) return round_nearest(format, w, {});
  const at::Tensor damped = damp(hessians, options.percdamp);
  QuantizedBatch batch = round_nearest(format, w, diagonals(damped));
  batch.rtn_loss = row_losses(w, batch.values, damped);
  batch.loss = batch.rtn_loss;
  return batch;
}

QuantizedBatch quantize_gptq(const Format& format, const at::Tensor& weights,
                             const at::Tensor& hessians, const GptqOptions& options,
                             const at::Tensor& shifts) {
  const FormatDesc& desc = format.desc();
  if (weights.is_cuda() && !gpu_rounds(desc)) {
    const at::Tensor m = shifts.defined() ? shifts.cpu() : shifts;
    return quantize_gptq(format, weights.cpu(), hessians.cpu(), options, m).to(weights.device());
  }
  const Tf32Products products(options.tf32 ? weights.device() : at::kCPU);
  GptqOptions used = options;
  used.actorder = options.actorder && desc.vector_dim == 1;
  const Factors factors = factor_hessians(hessians, used.percdamp, used.actorder);
  const at::Tensor w = shifts.defined() && used.feedback > 0
                           ? shifted(weights, shifts, used.feedback, factors)
                           : weights.contiguous();
  const at::Tensor importance = diagonals(factors.damped);
  const QuantizedBatch nearest = round_nearest(format, w, importance);

  QuantizedBatch batch = make_batch(desc, w);
  batch.tensor_params = nearest.tensor_params;
  batch.params = nearest.params.clone();  // static groups; or fitted anew by the solve
  if (w.is_cuda()) {
    solve_described_on_gpu(desc, w, factors, importance, used.actorder, batch);
    if (used.sweeps > 0) {
      sweep_described_on_gpu(desc, w, factors.damped, used.sweeps, batch);
      batch.loss = row_losses(w, batch.values, factors.damped);
    }
  } else if (desc.host_rounds()) {
    solve_described(format, w, factors, importance, used.actorder, used.block, batch);
    if (used.sweeps > 0) sweep_described(format, w, factors.damped, used.sweeps, batch);
  } else {
    solve_by_callbacks(format, w, factors, importance, used.actorder, batch);
  }
  batch.rtn_loss = row_losses(w, nearest.values, factors.damped);
  batch.rtn = factors.failed;
  for (int64_t e = 0; e < w.size(0); e++) {
    if (!factors.failed[static_cast<std::size_t>(e)]) continue;
    batch.codes[e].copy_(nearest.codes[e]);
    batch.values[e].copy_(nearest.values[e]);
    batch.params[e].copy_(nearest.params[e]);
    batch.loss[e].copy_(batch.rtn_loss[e]);
  }
  return batch;
}

}  // namespace aqhost
