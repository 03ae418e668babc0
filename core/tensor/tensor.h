#pragma once

#include <ATen/ATen.h>

#include <span>

#include "checkpoint/tensor_ref.h"

namespace aqhost {

/// Reads the matrix (shape {out, in}) or vector (shape {n}) at `ref`, in the type and on the device
/// that `options` name. The result owns its memory. Throws an Error that names the tensor if the
/// stored tensor does not fit `shape`, or if a value is not finite.
at::Tensor read_tensor(const Source& source, const TensorRef& ref, at::IntArrayRef shape,
                       const at::TensorOptions& options = at::kFloat);

/// The same into `out`, which is contiguous and has the wanted shape, type and device.
void read_tensor_into(const Source& source, const TensorRef& ref, const at::Tensor& out);

/// The elements of a contiguous CPU tensor of type T, which the span borrows.
template <typename T>
std::span<T> span_of(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous() && tensor.is_cpu());
  return {tensor.data_ptr<T>(), static_cast<std::size_t>(tensor.numel())};
}

}  // namespace aqhost
