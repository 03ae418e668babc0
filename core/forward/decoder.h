#pragma once

#include <ATen/ATen.h>

#include "checkpoint/source.h"
#include "forward/linear.h"
#include "forward/norm.h"
#include "plugin/model.h"

namespace aqhost {

/// What lies around the layers: embedding, final norm, lm_head, in `dtype`.
class Ends {
 public:
  Ends(const Source& source, const Model& model, at::ScalarType dtype = at::kFloat);

  /// ids [batch, tokens] i64 (Error if one is outside the vocabulary) to [batch, tokens, hidden].
  at::Tensor embed(const at::Tensor& ids) const;
  /// x [..., hidden] after the last layer to its normed form, the input of lm_head.
  at::Tensor final_norm(const at::Tensor& x) const;
  /// x [..., hidden] after the last layer to logits [..., vocab].
  at::Tensor logits(const at::Tensor& x) const;

 private:
  at::Tensor embedding_;  // [vocab, hidden]
  Norm norm_;
  Linear head_;
};

}  // namespace aqhost
