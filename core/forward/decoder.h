#pragma once

#include <ATen/ATen.h>

#include "checkpoint/source.h"
#include "forward/linear.h"
#include "forward/norm.h"
#include "plugin/model.h"

namespace aqhost {

/// ids [batch, tokens] i64 (Error if one is outside the vocabulary) to their embeddings [batch,
/// tokens, hidden], of the type and on the device of `options`. The table is read, and freed again.
at::Tensor embed_tokens(const Source& source, const Model& model, const at::Tensor& ids,
                        const at::TensorOptions& options = at::kFloat);

/// What follows the layers: final norm and lm_head.
class Ends {
 public:
  /// Reads both, to the type and device of `options`.
  Ends(const Source& source, const Model& model, const at::TensorOptions& options = at::kFloat);

  /// x [..., hidden] after the last layer to its normed form, the input of lm_head.
  at::Tensor final_norm(const at::Tensor& x) const;
  /// x [..., hidden] after the last layer to logits [..., vocab].
  at::Tensor logits(const at::Tensor& x) const;
  int64_t vocab_size() const { return head_.weight.size(0); }

 private:
  Norm norm_;
  Linear head_;
};

}  // namespace aqhost
