#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "checkpoint/source.h"
#include "forward/linear.h"
#include "forward/norm.h"
#include "plugin/model.h"

namespace aqhost {

/// The softmax attention of a described layer, without its projections: q/k norm, clipping, rotary
/// embedding, causal and sliding-window masks, grouped keys and values. It is computed in the type
/// of `options`, with sums in float32.
class Attention {
 public:
  Attention(const Source& source, const Model& model, int32_t layer, int64_t seq_len,
            const at::TensorOptions& options);

  /// Takes q [batch, tokens, heads x size], k and v [batch, tokens, kv_heads x size] as the
  /// projections give them (they may be overwritten). Returns the input of the output projection,
  /// [batch, tokens, heads x size]. Positions count from 0. Throws an Error if there are more
  /// tokens than seq_len.
  at::Tensor operator()(at::Tensor q, at::Tensor k, at::Tensor v) const;

 private:
  at::Tensor heads(const at::Tensor& x, int64_t count, const std::optional<Norm>& norm,
                   bool rotated) const;
  void rotate(at::Tensor& x) const;

  AttentionDesc desc_;
  int64_t seq_len_;
  std::optional<Norm> q_norm_, k_norm_;
  at::Tensor cos_, sin_;  // [seq_len, rope_dim / 2]; undefined: no RoPE
};

}  // namespace aqhost
