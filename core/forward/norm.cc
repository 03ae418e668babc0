#include "forward/norm.h"

#include "base/error.h"
#include "forward/fused.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

at::Tensor read_vector(const Source& source, const Model& model, const aq_tensor_key& key,
                       int64_t size) {
  const auto ref = model.find_ref(key);
  if (!ref)
    fail("model \"{}\" has no norm for layer {}, role {}, part {}", model.id(), key.layer, key.role,
         key.part);
  return read_tensor(source, *ref, {size});
}

}  // namespace

Norm::Norm(const Source& source, const Model& model, aq_tensor_key key, int64_t size,
           const at::TensorOptions& options, float eps)
    : kind_(model.desc().norm_kind),
      plus_one_(model.desc().norm_plus_one),
      eps_(eps > 0 ? eps : model.desc().norm_eps),
      dtype_(options.dtype().toScalarType()) {
  weight_ = read_vector(source, model, key, size);
  weight_ = plus_one_ ? (weight_.to(at::kFloat) + 1).to(options.device()) : weight_.to(options);
  if (kind_ != AQ_NORM_LAYER) return;
  key.part = AQ_PART_BIAS;
  bias_ = read_vector(source, model, key, size).to(options);
}

at::Tensor Norm::operator()(const at::Tensor& x) const {
  if (kind_ == AQ_NORM_LAYER)
    return at::layer_norm(x.to(weight_.scalar_type()), weight_.sizes(), weight_, bias_, eps_);
  if (!plus_one_ && can_fuse(x) && can_fuse(weight_)) return fused_rms_norm(x, weight_, eps_);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor factor = at::rsqrt(wide.square().mean(-1, true) + eps_);
  if (plus_one_) return (wide * factor).mul_(weight_).to(dtype_);
  return (wide * factor).to(dtype_).mul_(weight_);
}

}  // namespace aqhost
