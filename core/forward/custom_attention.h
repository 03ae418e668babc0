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

/// Sees the input [tokens, in_features] of a linear map each time before it is applied.
using LinearTap = std::function<void(const Module& module, const at::Tensor& x)>;

/// Attention that only the adapter knows, through block-forward (aq/ext/block_forward.h): it wires
/// the linear maps, which are run here where and in what type their weights are, as is softmax
/// attention, on the CPU in float32. The adapter sees float32 on the CPU.
class CustomAttention {
 public:
  /// The linear map in use for a module of the layer.
  using FindLinear = std::function<const Linear&(const Module& module)>;

  /// Reads what belongs to the layer and is no linear map. Error if the adapter has no
  /// block-forward. `model` must outlive this.
  CustomAttention(const Source& source, const Model& model, int32_t layer);

  /// a [batch, tokens, hidden], normed, to what is added to the residual. Any thread. Error with
  /// the adapter's message, or if it leaves something of its output unfilled or not finite.
  at::Tensor operator()(const at::Tensor& a, const FindLinear& find, const LinearTap& tap) const;

 private:
  friend struct CustomAttentionCall;

  const Model& model_;
  const int32_t layer_;
  const aq_block_forward* table_ = nullptr;
  std::map<std::array<int32_t, 3>, at::Tensor> tensors_;  // (role, expert, part)
};

}  // namespace aqhost
