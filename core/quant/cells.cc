#include "quant/cells.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "quant/rounder.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr float kInside = 0.05f;  // minimum distance from a border at the start

}  // namespace

bool Cells::possible(const FormatDesc& desc) { return desc.host_rounds(); }

Cells::Cells(const FormatDesc& desc, const at::Tensor& weights, const QuantizedMatrix& matrix,
             at::Device device) {
  const int64_t rows = matrix.rows, cols = matrix.cols, groups = desc.groups(cols);
  const int64_t width = desc.width(cols);
  const bool table = desc.element_kind == AQ_ELEM_TABLE;
  const int count = table ? 1 << desc.element_bits : desc.int_max - desc.int_min + 1;
  const aq::Grid grid(desc);
  const auto value_of = [&](int code) { return grid.value(static_cast<uint32_t>(code), 0); };
  for (int code = 0; code < count; code++) levels_.push_back(value_of(code));
  std::sort(levels_.begin(), levels_.end());
  levels_.erase(std::unique(levels_.begin(), levels_.end()), levels_.end());
  std::vector<int32_t> level_of(static_cast<std::size_t>(count));
  code_of_.resize(levels_.size());
  for (int code = count - 1; code >= 0; code--) {
    const auto at =
        std::lower_bound(levels_.begin(), levels_.end(), value_of(code)) - levels_.begin();
    level_of[static_cast<std::size_t>(code)] = static_cast<int32_t>(at);
    code_of_[static_cast<std::size_t>(at)] = static_cast<uint8_t>(code);
  }

  level_ = at::empty({rows, cols}, at::kInt);
  falls_.resize(static_cast<std::size_t>(rows * cols));
  for (at::Tensor* t : {&place_, &value_, &up_, &down_}) *t = at::empty({rows, cols});
  const float global = desc.tensor_params > 0 ? matrix.tensor_params[0] : 1.0f;
  const auto last = static_cast<int32_t>(levels_.size()) - 1;
  for (int64_t i = 0; i < rows * cols; i++) {
    const int64_t group = i / cols * groups + i % cols / width;
    const float* params = matrix.group_params.data() + group * desc.group_params;
    const float step = params[0] / global, zero = desc.group_params > 1 ? params[1] : 0.0f;
    const auto code = std::to_integer<std::size_t>(matrix.codes[static_cast<std::size_t>(i)]);
    const int32_t level = level_of[code];
    const float here = levels_[static_cast<std::size_t>(level)];
    float up = level < last ? levels_[static_cast<std::size_t>(level) + 1] - here : 0;
    float down = level > 0 ? here - levels_[static_cast<std::size_t>(level) - 1] : 0;
    const float weight = weights.data_ptr<float>()[i];
    float above = (desc.two_level() ? (weight + zero) / step : weight / step + zero) - here;
    // With a negative scale, the value of a weight rises towards the lower levels.
    falls_[static_cast<std::size_t>(i)] = step < 0;
    if (step < 0) {
      std::swap(up, down);
      above = -above;
    }
    level_.data_ptr<int32_t>()[i] = level;
    value_.data_ptr<float>()[i] = desc.two_level() ? here * step - zero : (here - zero) * step;
    up_.data_ptr<float>()[i] = up * std::fabs(step);
    down_.data_ptr<float>()[i] = down * std::fabs(step);
    if (up == 0) up = down;  // the outermost cells are as wide on their open side
    if (down == 0) down = up;
    place_.data_ptr<float>()[i] =
        std::clamp((above + down / 2) / ((up + down) / 2), kInside, 1 - kInside);
  }
  for (at::Tensor* t : {&place_, &value_, &up_, &down_}) *t = t->to(device);
  least_ = place_ - 0.5;
}

at::Tensor Cells::weights() const { return value_ + up_ * (place_ >= 1) - down_ * (place_ < 0); }

void Cells::move(const at::Tensor& gradient, double size) {
  place_.sub_(gradient.sign(), size);
  place_ = place_.maximum(least_).minimum(least_ + 1);
}

void Cells::store(QuantizedMatrix& matrix) const {
  const at::Tensor places = place_.cpu();
  const float* place = places.data_ptr<float>();
  const int32_t* level = level_.data_ptr<int32_t>();
  const auto last = static_cast<int32_t>(levels_.size()) - 1;
  for (std::size_t i = 0; i < matrix.codes.size(); i++) {
    const int32_t step = place[i] >= 1 ? 1 : place[i] < 0 ? -1 : 0;
    const int32_t to = level[i] + (falls_[i] ? -step : step);
    if (to == level[i] || to < 0 || to > last) continue;  // a -0 that did not move keeps its code
    matrix.codes[i] = static_cast<std::byte>(code_of_[static_cast<std::size_t>(to)]);
  }
}

}  // namespace aqhost
