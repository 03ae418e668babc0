#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// The attention of a described layer, as steps between the inputs of its linear maps. What flows
/// from stage to stage is a list of tensors [batch, tokens, features]: first the inputs of the
/// stage's linear maps, then what later stages need. Stage 0 receives the normed hidden states.
///
/// It is computed in the type of `options`, with sums in float32. Const functions are thread-safe.
class Attention {
 public:
  using Tensors = std::vector<at::Tensor>;
  /// Applies the linear map of a role to x.
  using Apply = std::function<at::Tensor(int32_t role, const at::Tensor& x)>;
  /// The roles of a stage's linear maps, by their input.
  using Stage = std::vector<std::vector<int32_t>>;

  explicit Attention(const AttentionDesc& desc, int64_t hidden_size);
  virtual ~Attention() = default;
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

  /// The last stage has one linear map, whose output is that of attention.
  const std::vector<Stage>& stages() const { return stages_; }
  /// Applies the linear maps of a stage that is not the last, and computes the tensors of the next
  /// stage from the tensors of this one. Positions count from 0. Throws an Error if there are more
  /// tokens than the layer was made for.
  virtual Tensors advance(std::size_t stage, Tensors tensors, const Apply& apply) const = 0;

 private:
  std::vector<Stage> stages_;
};

/// Makes the attention of a layer, which must not be AQ_ATTN_CUSTOM. Reads its norms and other
/// small tensors. `seq_len` is the maximum number of tokens of a sequence.
std::unique_ptr<Attention> make_attention(const Source& source, const Model& model, int32_t layer,
                                          int64_t seq_len, const at::TensorOptions& options);

}  // namespace aqhost
