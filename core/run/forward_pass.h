#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "checkpoint/source.h"
#include "forward/decoder.h"
#include "forward/layer.h"
#include "plugin/model.h"

namespace aqhost {

/// Hidden states [windows, tokens, hidden] after the last layer for windows [n, length] i64, of the
/// type and on the device of `options`, through open_layer(). One layer's weights are in memory at
/// a time (two on a GPU). `progress`, if set, hears of each layer done; `routed`, if set, of how a
/// layer with experts has routed the tokens of the windows from `begin` on.
at::Tensor run_layers(
    const Source& source, const Model& model, const at::Tensor& windows,
    const std::function<void(int32_t layer)>& progress,
    const at::TensorOptions& options = at::kFloat,
    const std::function<void(int32_t layer, int64_t begin, const Routing& routing)>& routed = {});

/// Some of the positions of windows [n, length] that have a next token.
struct Positions {
  int64_t window, windows, begin, count;  // windows [window, + windows), tokens [begin, + count)

  /// [windows * count, features] of states [n, length, features].
  at::Tensor of(const at::Tensor& states) const {
    return states.narrow(0, window, windows).narrow(1, begin, count).flatten(0, 1);
  }
  /// The tokens [windows * count, 1] that follow, of ids [n, length].
  at::Tensor next(const at::Tensor& ids) const {
    return ids.narrow(0, window, windows).narrow(1, begin + 1, count).reshape({-1, 1});
  }
};

/// Calls body for all positions of windows [n, length] in turn: at most `most` at once, of several
/// windows where `across`. Interrupted is thrown between them.
void for_positions(const at::Tensor& windows, int64_t most, bool across,
                   const std::function<void(const Positions&)>& body);

/// The loss [n, length - 1] f32 on the CPU of each next token of windows [n, length] i64; x [n,
/// length, hidden] is what the last layer made of them, on the device of `ends`.
at::Tensor next_token_losses(const Ends& ends, const at::Tensor& x, const at::Tensor& windows);

}  // namespace aqhost
