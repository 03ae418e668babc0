#pragma once

#include <ATen/ATen.h>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// RMS or layer norm over the last dimension, as transformers computes it: in float32, then rounded
/// to the type of `options`, then multiplied by the weight.
class Norm {
 public:
  /// Reads the weight (and, for layer norm, the bias) of `key`; both are [size].
  Norm(const Source& source, const Model& model, aq_tensor_key key, int64_t size,
       const at::TensorOptions& options = at::kFloat);

  /// x may have any float type.
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  int32_t kind_;
  float eps_;
  at::Tensor weight_, bias_;
};

}  // namespace aqhost
