#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

struct Perplexity {
  double value = 0;    // exp of the mean loss
  int64_t tokens = 0;  // that were predicted: window - 1 of each
};

/// Hidden states [windows, tokens, hidden] after the last layer, in `dtype`, for windows [n,
/// length] i64; inputs are rounded as an export of aqhost says. One layer's weights are in memory
/// at a time. `progress`, if set, hears of each layer done.
at::Tensor run_layers(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      at::ScalarType dtype = at::kFloat);

/// Perplexity over next tokens inside each window: everything up to the logits in `dtype`, the loss
/// in float32, sums in double.
Perplexity perplexity(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      at::ScalarType dtype = at::kFloat);

}  // namespace aqhost
