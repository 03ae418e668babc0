#pragma once

#include <ATen/ATen.h>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// RMS or layer norm over the last dimension, as transformers computes it: in float32, then rounded
/// to the type of `options`, then multiplied by the weight. If the model's norms multiply by 1 +
/// weight, they do so before they round.
class Norm {
 public:
  /// Reads the weight (and, for layer norm, the bias) of `key`; both are [size]. With `eps` 0, the
  /// norm has that of the model.
  Norm(const Source& source, const Model& model, aq_tensor_key key, int64_t size,
       const at::TensorOptions& options = at::kFloat, float eps = 0);

  /// x may have any float type.
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  int32_t kind_;
  bool plus_one_;
  float eps_;
  at::ScalarType dtype_;
  at::Tensor weight_, bias_;  // the weight is 1 + weight in float32 if plus_one_
};

}  // namespace aqhost
