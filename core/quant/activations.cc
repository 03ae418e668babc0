#include "quant/activations.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "base/error.h"
#include "quant/gpu.h"
#include "quant/groups.h"

namespace aqhost {
namespace {

constexpr int64_t kInputRowGrain = 16;  // minimum number of rows per thread

}  // namespace

ActivationRounder::ActivationRounder(std::shared_ptr<const Format> format)
    : format_(std::move(format)), rounder_(format_->desc()) {
  if (format_->desc().group_size == 0)
    fail(
        "aq: {}: one scale for all tokens and features, found while rounding, is not supported; "
        "tokens are rounded each by itself",
        format_->id());
  if (!format_->desc().host_rounds())
    fail("aq: {}: only formats that a description states, of up to 8 bits, round activations",
         format_->id());
}

void ActivationRounder::observe(const at::Tensor& x) {
  if (x.numel() > 0) absmax_ = std::max(absmax_, x.abs().max().item<float>());
}

float ActivationRounder::global() const {
  if (!has_global()) return 1;
  return global_ > 0 ? global_ : rounder_.fit_global(&absmax_, 1);
}

at::Tensor ActivationRounder::round_on_gpu(const at::Tensor& x) const {
  if (!gpu_rounds(format_->desc())) return (*this)(x.cpu()).to(x.device());
  const at::Tensor from = x.to(at::kFloat).reshape({1, -1, x.size(-1)}).contiguous();
  QuantizedBatch batch;
  if (has_global()) batch.tensor_params = at::full({1, 1}, global(), from.options());
  batch.params = fit_groups(*format_, from, {}, batch.tensor_params);
  batch.codes = at::empty_like(from, at::kByte);
  batch.values = at::empty_like(from);
  round_groups(*format_, from, batch);
  return batch.values.view_as(x).to(x.scalar_type());
}

at::Tensor ActivationRounder::operator()(const at::Tensor& x) const {
  if (x.is_cuda()) return round_on_gpu(x);
  const at::Tensor from = x.to(at::kFloat).contiguous();
  at::Tensor to = at::empty_like(from);
  const int64_t cols = from.size(-1), width = format_->desc().width(cols);
  const float whole = global();
  at::parallel_for(0, from.numel() / cols, kInputRowGrain, [&](int64_t begin, int64_t end) {
    const auto size = static_cast<std::size_t>(width);
    std::vector<float> step(size), zero(size);
    std::vector<uint8_t> codes(size);
    Rounder::Scratch scratch;
    for (int64_t at = begin * cols; at < end * cols; at += cols)
      for (int64_t c = 0; c < cols; c += width) {
        const int64_t n = std::min(width, cols - c);
        const float* group = from.data_ptr<float>() + at + c;
        const aq::GroupParams params = rounder_.fit(group, n, nullptr, whole, scratch);
        std::fill(step.begin(), step.end(), params.scale / whole);
        std::fill(zero.begin(), zero.end(), params.zero);
        rounder_.round(n, group, step.data(), zero.data(), codes.data(),
                       to.data_ptr<float>() + at + c);
      }
  });
  return to.to(x.scalar_type());
}

}  // namespace aqhost
