#include "tensor/tensor.h"

#include <vector>

#include "base/error.h"
#include "plugin/tensor_check.h"

namespace aqhost {
namespace {

/// bfloat16 as it is stored, through memory that the GPU reads by itself; undefined if it is not.
at::Tensor copy_to_gpu(const Source& source, const std::string& name, int64_t begin,
                       at::IntArrayRef shape, const at::TensorOptions& options) {
  const at::Tensor pinned = at::empty(shape, at::TensorOptions(at::kBFloat16).pinned_memory(true));
  if (!source.read_stored(name, 2 * begin,
                          {static_cast<std::byte*>(pinned.data_ptr()), pinned.nbytes()}))
    return {};
  at::Tensor out = pinned.to(options.device(), at::kBFloat16, /*non_blocking=*/true);
  if (!at::isfinite(out).all().item<bool>())
    fail("{}: tensor {}: a value is not finite", source.directory(), name);
  return out.to(options);
}

at::Tensor read_range(const Source& source, const std::string& name, int64_t begin,
                      at::IntArrayRef shape, const at::TensorOptions& options) {
  if (options.device().is_cuda() && source.find(name)->dtype == DType::kBF16)
    if (at::Tensor out = copy_to_gpu(source, name, begin, shape, options); out.defined())
      return out;
  const at::Tensor out = at::empty(shape, at::kFloat);
  source.read_f32(name, begin, span_of<float>(out));
  return out.to(options);
}

}  // namespace

at::Tensor read_tensor(const Source& source, const TensorRef& ref, at::IntArrayRef shape,
                       const at::TensorOptions& options) {
  check_holds(source, ref, shape);
  const TensorInfo& info = *source.find(ref.name);
  std::vector<int64_t> stored = info.shape;
  int64_t begin = 0;
  if (ref.index >= 0) {
    begin = ref.index * (info.numel() / stored[0]);
    stored.erase(stored.begin());
  }
  if (shape.empty()) return read_range(source, ref.name, begin, shape, options);
  if (!ref.transposed && ref.row_step == 1) {  // rows in a row: no other is read
    const int64_t row = c10::multiply_integers(shape.slice(1));
    return read_range(source, ref.name, begin + ref.row_begin * row, shape, options);
  }
  at::Tensor matrix = read_range(source, ref.name, begin, stored, options);
  if (ref.transposed) matrix = matrix.t();
  return matrix
      .slice(0, ref.row_begin, ref.row_begin + (shape[0] - 1) * ref.row_step + 1, ref.row_step)
      .clone(at::MemoryFormat::Contiguous);
}

}  // namespace aqhost
