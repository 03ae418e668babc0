#include "quant/quantize.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "quant/factor.h"
#include "quant/gpu.h"
#include "quant/groups.h"
#include "quant/products.h"
#include "quant/solve.h"
#include "quant/solve_by_callbacks.h"
#include "quant/sweep.h"
#include "quant/tile.h"
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

/// 1/2 d H d^T for every row, with d = weights - values [E, out, in]. A GPU computes only what is
/// on and below H's diagonal, in blocks of columns, because the products take long there.
at::Tensor row_losses(const at::Tensor& weights, const at::Tensor& values,
                      const at::Tensor& damped) {
  const at::Tensor d = weights - values;
  const int64_t in = d.size(2), block = d.is_cuda() ? 1024 : in;
  at::Tensor losses = at::zeros({d.size(0), d.size(1)}, d.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < in; begin += block) {
    const int64_t n = std::min(block, in - begin), rest = in - begin - n;
    const at::Tensor here = d.narrow(2, begin, n), h = damped.narrow(2, begin, n);
    at::Tensor products = row_products(here, h.narrow(1, begin, n));
    if (rest > 0)
      products.baddbmm_(d.narrow(2, begin + n, rest), h.narrow(1, begin + n, rest), 1, 2);
    losses += products.mul_(here).sum(2, false, at::kDouble);
  }
  return losses.mul_(0.5);
}

/// Rows [begin, begin + count) of every matrix of [E, out, ...].
at::Tensor rows_of(const at::Tensor& t, int64_t begin, int64_t count) {
  return t.narrow(1, begin, count).contiguous();
}

/// Calls body(begin, count) for parts of `rows` rows. A part has `at_once` rows, and the last one
/// up to kRows - 1 more, because the sums over few rows could be computed in another order.
template <typename Body>
void for_row_parts(int64_t rows, int64_t at_once, Body body) {
  for (int64_t begin = 0, n = 0; begin < rows; begin += n) {
    n = rows - begin < at_once + kRows ? rows - begin : at_once;
    body(begin, n);
  }
}

/// t[e][r][order[e][c]] for t [E, out, in].
at::Tensor permuted(const at::Tensor& t, const at::Tensor& order) {
  if (t.is_cuda()) return permute_columns_on_gpu(t, order);
  return t.gather(2, order.unsqueeze(1).expand_as(t));
}

/// weights + products H^-1, with H^-1 = U^T U. Weights whose H has no factor stay as they are.
at::Tensor shifted(const at::Tensor& weights, const at::Tensor& products, const Factors& factors) {
  at::Tensor change = permuted(products, factors.order);
  change = row_products(row_products(change, factors.upper.transpose(1, 2)), factors.upper);
  for (int64_t e = 0; e < weights.size(0); e++)
    if (factors.failed[static_cast<std::size_t>(e)]) change[e].zero_();
  return weights + permuted(change, factors.order.argsort(int64_t{1}));
}

at::Tensor diagonals(const at::Tensor& damped) { return damped.diagonal(0, 1, 2).contiguous(); }

/// Rounds rows of matrices to nearest. `tensor_params` are those of the whole matrices, and so are
/// `params` if they are defined; else groups are fitted to these rows.
QuantizedBatch round_nearest(const Format& format, const at::Tensor& weights,
                             const at::Tensor& importance, const at::Tensor& tensor_params,
                             const at::Tensor& params = {}) {
  QuantizedBatch batch = make_batch(format.desc(), weights);
  batch.tensor_params = tensor_params;
  batch.params = params.defined() ? params : fit_groups(format, weights, importance, tensor_params);
  round_groups(format, weights, batch);
  batch.rtn.assign(static_cast<std::size_t>(weights.size(0)), true);
  return batch;
}

/// Where weights that lie on `device` are rounded to the format.
at::Device rounding_device(const FormatDesc& desc, at::Device device) {
  return device.is_cpu() || gpu_rounds(desc) ? device : at::Device(at::kCPU);
}

/// What a batch of matrices is solved with, on the device that rounds it.
struct SolveInputs {
  Factors factors;
  at::Tensor importance;      // [E, in]
  at::Tensor tensor_params;   // of the whole matrices
  at::Tensor damped_at_home;  // factors.damped on the device of the weights
};

/// Solves rows [E, n, in] of matrices: `w`, and the same on their own device, `at_home`, where the
/// losses of rounding are computed. See round_nearest() for `params`. The result is at home.
QuantizedBatch solve_rows(const Format& format, const at::Tensor& w, const at::Tensor& at_home,
                          const SolveInputs& inputs, const GptqOptions& options,
                          const at::Tensor& params) {
  const FormatDesc& desc = format.desc();
  const at::Device home = at_home.device();
  const Factors& factors = inputs.factors;
  const at::Tensor &importance = inputs.importance, &tensor_params = inputs.tensor_params;
  QuantizedBatch nearest = round_nearest(format, w, importance, tensor_params, params);
  nearest.loss = row_losses(at_home, nearest.values.to(home), inputs.damped_at_home).to(w.device());
  if (std::find(factors.failed.begin(), factors.failed.end(), true) == factors.failed.end()) {
    nearest.codes.reset();  // only matrices without a factor need them
    nearest.values.reset();
  }
  QuantizedBatch batch = make_batch(desc, w);
  batch.tensor_params = tensor_params;
  batch.params = nearest.params.clone();  // static groups; or fitted anew by the solve
  if (w.is_cuda()) {
    solve_described_on_gpu(desc, w, factors, importance, options.actorder, batch);
    if (options.sweeps > 0) {
      sweep_described_on_gpu(desc, w, factors.damped, options.sweeps, batch);
      batch.loss = row_losses(w, batch.values, factors.damped);
    }
  } else if (desc.host_rounds()) {
    solve_described(format, w, factors, importance, options.actorder, options.block, batch);
    if (options.sweeps > 0) sweep_described(format, w, factors.damped, options.sweeps, batch);
  } else {
    // the parameters of a group that is the whole matrix are those that are known
    const bool static_groups = options.actorder || desc.group_size == 0;
    solve_by_callbacks(format, w, factors, importance, static_groups, batch);
  }
  batch.rtn_loss = nearest.loss;
  for (int64_t e = 0; e < w.size(0); e++) {
    if (!factors.failed[static_cast<std::size_t>(e)]) continue;
    batch.codes[e].copy_(nearest.codes[e]);
    batch.values[e].copy_(nearest.values[e]);
    batch.params[e].copy_(nearest.params[e]);
    batch.loss[e].copy_(batch.rtn_loss[e]);
  }
  return batch.to(home);
}

}  // namespace

QuantizedBatch quantize_rtn(const Format& format, const at::Tensor& weights,
                            const at::Tensor& hessians, const GptqOptions& options) {
  if (weights.is_cuda() && !(gpu_rounds(format.desc()) && hessians.defined())) {
    const at::Tensor h = hessians.defined() ? hessians.cpu() : hessians;
    return quantize_rtn(format, weights.cpu(), h, options).to(weights.device());
  }
  const at::Tensor w = weights.contiguous();
  if (!hessians.defined()) return round_nearest(format, w, {}, fit_tensors(format, w, {}));
  const at::Tensor damped = damp(hessians, options.percdamp), importance = diagonals(damped);
  QuantizedBatch batch = round_nearest(format, w, importance, fit_tensors(format, w, importance));
  batch.rtn_loss = row_losses(w, batch.values, damped);
  batch.loss = batch.rtn_loss;
  return batch;
}

QuantizedBatch quantize_gptq(const Format& format, at::Tensor weights, at::Tensor hessians,
                             const GptqOptions& options, at::Tensor shifts) {
  const FormatDesc& desc = format.desc();
  const Tf32Products tf32(options.tf32 ? weights.device() : at::kCPU);
  GptqOptions used = options;
  used.actorder = options.actorder && desc.vector_dim == 1;
  const int64_t rows = weights.size(1);
  const int64_t at_once = options.rows_at_once > 0 ? options.rows_at_once : rows;
  at::Tensor products;
  if (shifts.defined()) require_finite(shifts);
  if (shifts.defined() && used.feedback > 0)
    products = at::bmm(weights, shifts).mul_(used.feedback);
  shifts.reset();
  SolveInputs inputs;
  inputs.factors = factor_hessians(hessians, used.percdamp, used.actorder);
  hessians.reset();
  if (products.defined()) {
    for_row_parts(rows, at_once, [&](int64_t begin, int64_t n) {
      products.narrow(1, begin, n)
          .copy_(shifted(rows_of(weights, begin, n), rows_of(products, begin, n), inputs.factors));
    });
    weights = std::move(products);
  }
  const at::Tensor w = weights.contiguous();
  weights.reset();
  const at::Device rounding = rounding_device(desc, w.device());
  const at::Tensor to_round = w.to(rounding);
  inputs.damped_at_home = inputs.factors.damped;
  inputs.factors = inputs.factors.to(rounding);
  // what a whole matrix shares is fitted to all of its rows
  inputs.importance = diagonals(inputs.factors.damped);
  inputs.tensor_params = fit_tensors(format, to_round, inputs.importance);
  at::Tensor params;
  if (desc.group_size == 0)
    params = fit_groups(format, to_round, inputs.importance, inputs.tensor_params);
  const auto solve = [&](int64_t begin, int64_t n) {
    return solve_rows(format, rows_of(to_round, begin, n), rows_of(w, begin, n), inputs, used,
                      params.defined() ? rows_of(params, begin, n) : params);
  };
  QuantizedBatch batch;
  if (at_once >= rows) {
    batch = solve(0, rows);
  } else {
    batch = make_batch(desc, w);
    batch.tensor_params = inputs.tensor_params.to(w.device());
    batch.params = at::empty({w.size(0), rows, desc.groups(w.size(2)), int64_t{desc.group_params}},
                             w.options());
    for_row_parts(rows, at_once, [&](int64_t begin, int64_t n) {
      const QuantizedBatch part = solve(begin, n);
      for (const auto member :
           {&QuantizedBatch::codes, &QuantizedBatch::params, &QuantizedBatch::values,
            &QuantizedBatch::loss, &QuantizedBatch::rtn_loss})
        (batch.*member).narrow(1, begin, n).copy_(part.*member);
    });
  }
  batch.rtn = inputs.factors.failed;
  return batch;
}

}  // namespace aqhost
