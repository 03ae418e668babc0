#include "tensor/tensor.h"

#include <vector>

#include "base/error.h"

namespace aqhost {
namespace {

/// Copies stored bfloat16 through pinned memory, which the GPU reads directly. Returns false if the
/// tensor is not stored in the form in which it is read.
bool copy_to_gpu(const Source& source, const std::string& name, int64_t begin,
                 const at::Tensor& out) {
  const at::Tensor pinned =
      at::empty(out.sizes(), at::TensorOptions(at::kBFloat16).pinned_memory(true));
  if (!source.read_stored(name, 2 * begin,
                          {static_cast<std::byte*>(pinned.data_ptr()), pinned.nbytes()}))
    return false;
  const at::Tensor there = pinned.to(out.device(), at::kBFloat16, /*non_blocking=*/true);
  if (!at::isfinite(there).all().item<bool>())
    fail("{}: tensor {}: a value is not finite", source.directory(), name);
  out.copy_(there);
  return true;
}

/// Whether no exponent is that of infinity. The loop has no branch, so that it vectorizes.
bool all_finite(std::span<const at::BFloat16> values) {
  uint16_t worst = 0;
  for (const at::BFloat16 v : values) {
    const auto magnitude = static_cast<uint16_t>(v.x & 0x7fffu);
    worst = magnitude > worst ? magnitude : worst;
  }
  return worst < 0x7f80u;
}

/// Copies stored bfloat16 to a bfloat16 tensor without converting through float32. Returns false if
/// the tensor is not stored in the form in which it is read, or if a value is not finite
/// (read_f32() then throws the Error).
bool copy_stored(const Source& source, const std::string& name, int64_t begin,
                 const at::Tensor& out) {
  return out.scalar_type() == at::kBFloat16 &&
         source.read_stored(name, 2 * begin,
                            {static_cast<std::byte*>(out.data_ptr()), out.nbytes()}) &&
         all_finite(span_of<at::BFloat16>(out));
}

void read_range(const Source& source, const std::string& name, int64_t begin,
                const at::Tensor& out) {
  const bool direct = source.find(name)->dtype == DType::kBF16;
  if (direct && out.is_cuda() && copy_to_gpu(source, name, begin, out)) return;
  if (direct && out.is_cpu() && copy_stored(source, name, begin, out)) return;
  if (out.is_cpu() && out.scalar_type() == at::kFloat)
    return source.read_f32(name, begin, span_of<float>(out));
  const at::Tensor values = at::empty(out.sizes(), at::kFloat);
  source.read_f32(name, begin, span_of<float>(values));
  out.copy_(values);
}

/// Where the elements of a tensor lie: in a tensor of shape `stored`, from element `begin` on, up
/// to row `last`.
struct Place {
  int64_t begin = 0, last = 0;
  std::vector<int64_t> stored;
};

/// Throws an Error if the stored tensor does not hold `shape`.
Place find_place(const Source& source, const TensorRef& ref, at::IntArrayRef shape) {
  check_holds(source, ref, shape);
  const TensorInfo& info = *source.find(ref.name);
  Place place;
  place.stored = info.shape;
  if (ref.index >= 0) {
    place.begin = ref.index * (info.numel() / place.stored[0]);
    place.stored.erase(place.stored.begin());
  }
  place.last = shape.empty() ? 0 : (shape[0] - 1) * ref.row_step;
  return place;
}

void read_place(const Source& source, const TensorRef& ref, const Place& place,
                const at::Tensor& out) {
  if (out.dim() == 0) return read_range(source, ref.name, place.begin, out);
  if (!ref.transposed && ref.row_step == 1) {  // the rows are consecutive, so no other row is read
    const int64_t row = c10::multiply_integers(out.sizes().slice(1));
    return read_range(source, ref.name, place.begin + ref.row_begin * row, out);
  }
  at::Tensor matrix = at::empty(place.stored, out.options());
  read_range(source, ref.name, place.begin, matrix);
  if (ref.transposed) matrix = matrix.t();
  out.copy_(matrix.slice(0, ref.row_begin, ref.row_begin + place.last + 1, ref.row_step));
}

}  // namespace

at::Tensor read_tensor(const Source& source, const TensorRef& ref, at::IntArrayRef shape,
                       const at::TensorOptions& options) {
  const Place place = find_place(source, ref, shape);
  const at::Tensor out = at::empty(shape, options);
  read_place(source, ref, place, out);
  return out;
}

void read_tensor_into(const Source& source, const TensorRef& ref, const at::Tensor& out) {
  read_place(source, ref, find_place(source, ref, out.sizes()), out);
}

}  // namespace aqhost
