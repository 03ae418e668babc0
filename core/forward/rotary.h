#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "plugin/model.h"

namespace aqhost {

/// The rotary embedding of a layer. Thread-safe.
class Rotary {
 public:
  /// For sequences of up to `seq_len` tokens, in the type and on the device of `options`.
  Rotary(const AttentionDesc& desc, int64_t seq_len, const at::TensorOptions& options);

  /// Rotates the first dimensions of the heads x [batch, tokens, heads, size] in place; does
  /// nothing if the layer has no rotary embedding. Positions count from 0. Throws an Error if there
  /// are more tokens than `seq_len`.
  void operator()(at::Tensor& x) const;

 private:
  int64_t seq_len_;
  bool interleaved_;
  at::Tensor cos_, sin_;  // [seq_len, rope_dim / 2]; undefined: no RoPE
};

}  // namespace aqhost
