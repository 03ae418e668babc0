#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "checkpoint/source.h"
#include "forward/decoder.h"
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
/// set, hears of each layer done; `routed`, if set, of how a layer with experts has routed the
/// tokens of the windows from `begin` on.
at::Tensor run_layers(
    const Source& source, const Model& model, const at::Tensor& windows,
    const std::function<void(int32_t layer)>& progress, at::ScalarType dtype = at::kFloat,
    const std::function<void(int32_t layer, int64_t begin, const Routing& routing)>& routed = {});

/// The loss [n, 1] of each next token of a window [n + 1] i64, in float32; x [n + 1, hidden] is
/// what the last layer made of it.
at::Tensor next_token_losses(const Ends& ends, const at::Tensor& x, const at::Tensor& window);

/// Perplexity over next tokens inside each window: everything up to the logits in `dtype`, the loss
/// in float32, sums in double.
Perplexity perplexity(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      at::ScalarType dtype = at::kFloat);

}  // namespace aqhost
