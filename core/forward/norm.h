#pragma once

#include <ATen/ATen.h>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// RMS or layer norm over the last dimension as transformers computes it: in float32, rounded to
/// the type of `options`, then the weight is multiplied.
class Norm {
 public:
  /// Reads the weight (and, for layer norm, the bias) of `key`, [size].
  Norm(const Source& source, const Model& model, aq_tensor_key key, int64_t size,
       const at::TensorOptions& options = at::kFloat);

  /// x of any float type.
  at::Tensor operator()(const at::Tensor& x) const;

 private:
  int32_t kind_;
  float eps_;
  at::Tensor weight_, bias_;
};

}  // namespace aqhost
