#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "checkpoint/source.h"
#include "forward/embedding_and_head.h"
#include "forward/layer.h"
#include "plugin/model.h"

namespace aqhost {

/// Runs hidden states [windows, length, hidden] through a layer. The result has their type.
at::Tensor layer_output(const Layer& layer, const at::Tensor& x);

/// Runs windows [n, length] i64 through all layers, each opened by open_layer(). Returns the hidden
/// states [n, length, hidden] after the last layer, in the type and on the device of `options`. The
/// weights of one layer are in memory at a time (of two on a GPU). `progress`, if set, is called
/// after each layer. `routed`, if set, receives how a layer with experts has routed the tokens of
/// the windows from `begin` on.
at::Tensor run_layers(
    const Source& source, const Model& model, const at::Tensor& windows,
    const std::function<void(int32_t layer)>& progress,
    const at::TensorOptions& options = at::kFloat,
    const std::function<void(int32_t layer, int64_t begin, const Routing& routing)>& routed = {});

/// A rectangle of the positions of windows [n, length] that have a next token: `count` tokens from
/// `begin` on, in each of `windows` windows from `window` on.
struct Positions {
  int64_t window, windows, begin, count;

  /// The rows [windows * count, features] of these positions in states [n, length, features].
  at::Tensor of(const at::Tensor& states) const {
    return states.narrow(0, window, windows).narrow(1, begin, count).flatten(0, 1);
  }
  /// The tokens [windows * count, 1] that follow, of ids [n, length].
  at::Tensor next(const at::Tensor& ids) const {
    return ids.narrow(0, window, windows).narrow(1, begin + 1, count).reshape({-1, 1});
  }
};

/// Calls body for all positions of windows [n, length] in turn, for at most `maximum` positions (at
/// least one) at a time; for those of several windows only if `across`. Interrupted is thrown
/// between the calls.
void for_positions(const at::Tensor& windows, int64_t maximum, bool across,
                   const std::function<void(const Positions&)>& body);

/// The maximum for for_positions() where the logits of a model are compared in float64, and the
/// hidden states are on `device`.
int64_t compared_positions(const OutputHead& head, at::Device device);

/// The loss of each next token of windows [n, length] i64, as [n, length - 1] f32 on the CPU. x [n,
/// length, hidden] are their hidden states after the last layer, on the device of `head`.
at::Tensor next_token_losses(const OutputHead& head, const at::Tensor& x,
                             const at::Tensor& windows);

}  // namespace aqhost
