#pragma once

#include <ATen/ATen.h>

#include "checkpoint/source.h"
#include "forward/linear.h"
#include "forward/norm.h"
#include "plugin/model.h"

namespace aqhost {

/// Looks up the embeddings [batch, tokens, hidden] of ids [batch, tokens] i64, in the type and on
/// the device of `options`. Throws an Error if an id is outside the vocabulary. The table is read
/// for this call and freed again.
at::Tensor embed_tokens(const Source& source, const Model& model, const at::Tensor& ids,
                        const at::TensorOptions& options = at::kFloat);
/// The same into `out`, a contiguous tensor of the embeddings' shape, some windows at a time.
void embed_tokens_into(const Source& source, const Model& model, const at::Tensor& ids,
                       const at::Tensor& out);

/// The part of the model after the layers: the final norm and lm_head.
class OutputHead {
 public:
  /// Reads both in the type and to the device of `options`.
  OutputHead(const Source& source, const Model& model,
             const at::TensorOptions& options = at::kFloat);

  /// Norms x [..., hidden], the output of the last layer; the result is the input of lm_head.
  at::Tensor final_norm(const at::Tensor& x) const;
  /// Turns x [..., hidden], the output of the last layer, into logits [..., vocab].
  at::Tensor logits(const at::Tensor& x) const;
  /// Uses another weight [vocab, hidden] for lm_head, which is converted to the head's type.
  void set_weight(const at::Tensor& weight) { head_.weight = weight.to(head_.weight.options()); }
  int64_t vocab_size() const { return head_.weight.size(0); }

 private:
  Norm norm_;
  float scale_;  // of the logits
  Linear head_;
};

}  // namespace aqhost
