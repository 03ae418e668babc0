#pragma once

#include <ATen/ATen.h>

#include <span>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// The matrix (shape {out, in}) or vector (shape {n}) at `ref`, of the type and on the device that
/// `options` name, owning its memory. Error names the tensor where what is stored does not fit
/// `shape`, and where a value is not finite.
at::Tensor read_tensor(const Source& source, const TensorRef& ref, at::IntArrayRef shape,
                       const at::TensorOptions& options = at::kFloat);

/// Likewise into `out`, which is contiguous and has the shape, type and device that are wanted.
void read_tensor_into(const Source& source, const TensorRef& ref, const at::Tensor& out);

/// The elements of a contiguous CPU tensor of type T, borrowed.
template <typename T>
std::span<T> span_of(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous() && tensor.is_cpu());
  return {tensor.data_ptr<T>(), static_cast<std::size_t>(tensor.numel())};
}

}  // namespace aqhost
