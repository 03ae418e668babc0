#include "forward/decoder.h"

#include "base/error.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr aq_tensor_key outside(int32_t role) { return {-1, role, AQ_EXPERT_NONE, AQ_PART_WEIGHT}; }

at::Tensor read_embedding(const Source& source, const Model& model) {
  const auto ref = model.find_ref(outside(AQ_ROLE_EMBEDDING));
  if (!ref) fail("model \"{}\" has no embedding", model.id());
  return read_tensor(source, *ref, {model.desc().vocab_size, model.desc().hidden_size});
}

}  // namespace

Ends::Ends(const Source& source, const Model& model, at::ScalarType dtype)
    : embedding_(read_embedding(source, model).to(dtype)),
      norm_(source, model, outside(AQ_ROLE_FINAL_NORM), model.desc().hidden_size, dtype),
      head_{embedding_, {}} {
  if (model.desc().tied_embeddings) return;
  const Module& head = *model.find_module(outside(AQ_ROLE_LM_HEAD));
  head_.weight = read_tensor(source, head.weight, {head.out_features, head.in_features}).to(dtype);
  if (head.bias) head_.bias = read_tensor(source, *head.bias, {head.out_features}).to(dtype);
}

at::Tensor Ends::embed(const at::Tensor& ids) const {
  const auto [least, most] = ids.aminmax();
  if (least.item<int64_t>() < 0 || most.item<int64_t>() >= embedding_.size(0))
    fail("token ids from {} to {}, the vocabulary has {}: does the tokenizer belong to this model?",
         least.item<int64_t>(), most.item<int64_t>(), embedding_.size(0));
  return at::embedding(embedding_, ids);
}

at::Tensor Ends::final_norm(const at::Tensor& x) const { return norm_(x); }

at::Tensor Ends::logits(const at::Tensor& x) const { return head_(norm_(x)); }

}  // namespace aqhost
