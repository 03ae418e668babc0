#include "forward/embedding_and_head.h"

#include "base/error.h"
#include "forward/batches.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr aq_tensor_key outside(int32_t role) { return {-1, role, AQ_EXPERT_NONE, AQ_PART_WEIGHT}; }

constexpr aq_tensor_key head_bias() { return {-1, AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, AQ_PART_BIAS}; }

TensorRef embedding_ref(const Model& model) {
  const auto ref = model.find_ref(outside(AQ_ROLE_EMBEDDING));
  if (!ref) fail("model \"{}\" has no embedding", model.id());
  return *ref;
}

at::Tensor read_embedding(const Source& source, const Model& model,
                          const at::TensorOptions& options) {
  return read_tensor(source, embedding_ref(model),
                     {model.desc().vocab_size, model.desc().hidden_size}, options);
}

}  // namespace

at::Tensor embed_tokens(const Source& source, const Model& model, const at::Tensor& ids,
                        const at::TensorOptions& options) {
  at::Tensor out = at::empty({ids.size(0), ids.size(1), model.desc().hidden_size}, options);
  embed_tokens_into(source, model, ids, out);
  return out;
}

void embed_tokens_into(const Source& source, const Model& model, const at::Tensor& ids,
                       const at::Tensor& out) {
  const auto [minimum, maximum] = ids.aminmax();
  const int64_t vocabulary = model.desc().vocab_size;
  if (minimum.item<int64_t>() < 0 || maximum.item<int64_t>() >= vocabulary)
    fail("token ids from {} to {}, the vocabulary has {}: does the tokenizer belong to this model?",
         minimum.item<int64_t>(), maximum.item<int64_t>(), vocabulary);
  // a bfloat16 table is kept as it is stored; only the selected rows are converted
  const TensorInfo* table = source.find(embedding_ref(model).name);
  const bool narrow = table != nullptr && table->dtype == DType::kBF16;
  const at::Tensor rows =
      read_embedding(source, model, narrow ? out.options().dtype(at::kBFloat16) : out.options());
  const double scale = model.desc().embedding_scale;
  for_window_batches(ids, [&](int64_t begin, int64_t count) {
    out.narrow(0, begin, count)
        .copy_(at::embedding(rows, ids.narrow(0, begin, count).to(out.device())));
    if (scale != 1) out.narrow(0, begin, count).mul_(scale);
  });
}

OutputHead::OutputHead(const Source& source, const Model& model, const at::TensorOptions& options)
    : norm_(source, model, outside(AQ_ROLE_FINAL_NORM), model.desc().hidden_size, options),
      scale_(model.desc().logit_scale) {
  if (model.desc().tied_embeddings) {
    head_.weight = read_embedding(source, model, options);
    if (const auto bias = model.find_ref(head_bias()))
      head_.bias = read_tensor(source, *bias, {model.desc().vocab_size}, options);
    return;
  }
  const Module& head = *model.find_module(outside(AQ_ROLE_LM_HEAD));
  head_.weight = read_tensor(source, head.weight, {head.out_features, head.in_features}, options);
  if (head.bias) head_.bias = read_tensor(source, *head.bias, {head.out_features}, options);
}

at::Tensor OutputHead::final_norm(const at::Tensor& x) const { return norm_(x); }

at::Tensor OutputHead::logits(const at::Tensor& x) const {
  const at::Tensor logits = head_(norm_(x));
  return scale_ == 1 ? logits : logits * scale_;
}

}  // namespace aqhost
