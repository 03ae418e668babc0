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

/// Perplexity over next tokens inside each window: everything up to the logits is of the type and
/// on the device of `options`, the loss in float32, sums in double.
Perplexity perplexity(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      const at::TensorOptions& options = at::kFloat);

/// Error if windows are longer than what the model was made for.
void check_window(const Model& model, int64_t window);

}  // namespace aqhost
