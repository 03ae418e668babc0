#pragma once

#include <ATen/ATen.h>

#include <span>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// The matrix (shape {out, in}) or vector (shape {n}) at `ref`, float32 on the CPU, owning its
/// memory. Error names the tensor where what is stored does not fit `shape`.
at::Tensor read_tensor(const Source& source, const TensorRef& ref, at::IntArrayRef shape);

/// The elements of a contiguous CPU tensor of type T, borrowed.
template <typename T>
std::span<T> span_of(const at::Tensor& tensor) {
  TORCH_INTERNAL_ASSERT(tensor.is_contiguous() && tensor.is_cpu());
  return {tensor.data_ptr<T>(), static_cast<std::size_t>(tensor.numel())};
}

}  // namespace aqhost
