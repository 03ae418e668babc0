#pragma once

#include <ATen/ATen.h>
#include <aq/ext/block_forward.h>

#include <array>
#include <functional>
#include <map>

#include "checkpoint/source.h"
#include "forward/linear.h"
#include "plugin/model.h"

namespace aqhost {

/// Receives the input [tokens, in_features] of a linear map each time before the map is applied.
using LinearTap = std::function<void(const Module& module, const at::Tensor& x)>;

/// An attention that only the adapter knows, called through block-forward (aq/ext/block_forward.h).
/// The adapter connects the linear maps. The host runs these on the device and in the type of their
/// weights, and it runs softmax attention in float32 on the CPU. The adapter sees float32 tensors
/// on the CPU.
class CustomAttention {
 public:
  /// Returns the linear map that is in use for a module of the layer.
  using FindLinear = std::function<const Linear&(const Module& module)>;

  /// Reads the tensors of the layer that are not linear maps. Throws an Error if the adapter has no
  /// block-forward. `model` must outlive this object.
  CustomAttention(const Source& source, const Model& model, int32_t layer);

  /// Turns the normed a [batch, tokens, hidden] into what is added to the residual. Thread-safe.
  /// Throws an Error with the adapter's message, or if parts of the adapter's output are not filled
  /// or not finite.
  at::Tensor operator()(const at::Tensor& a, const FindLinear& find, const LinearTap& tap) const;

 private:
  friend struct CustomAttentionCall;

  const Model& model_;
  const int32_t layer_;
  const aq_block_forward* table_ = nullptr;
  std::map<std::array<int32_t, 3>, at::Tensor> tensors_;  // (role, expert, part)
};

}  // namespace aqhost
