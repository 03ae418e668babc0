#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "checkpoint/source.h"
#include "forward/layer.h"
#include "plugin/model.h"

namespace aqhost {

struct Perplexity {
  double value = 0;    // exp of the mean loss
  int64_t tokens = 0;  // that were predicted: window - 1 of each
};

/// Layer `index` of a checkpoint for sequences of up to `length` tokens; its modules round their
/// inputs where an export of aqhost says so. `model` must outlive the result.
Layer open_layer(const Source& source, const Model& model, int32_t index, int64_t length,
                 at::ScalarType dtype = at::kFloat);

/// Hidden states [windows, tokens, hidden] after the last layer, in `dtype`, for windows [n,
/// length] i64, through open_layer(). One layer's weights are in memory at a time. `progress`, if
/// set, hears of each layer done.
at::Tensor run_layers(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      at::ScalarType dtype = at::kFloat);

/// Perplexity over next tokens inside each window: everything up to the logits in `dtype`, the loss
/// in float32, sums in double.
Perplexity perplexity(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      at::ScalarType dtype = at::kFloat);

}  // namespace aqhost
