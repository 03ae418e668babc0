// aq/sdk/tensor.hpp - checked views of the tensors that the host passes to a plugin.
#pragma once

#include <aq/sdk/plugin.hpp>
#include <initializer_list>

namespace aq {

template <typename T>
struct DataType;
template <>
struct DataType<float> {
  static constexpr uint8_t kCode = kDLFloat;
};
template <>
struct DataType<int32_t> {
  static constexpr uint8_t kCode = kDLInt;
};
template <>
struct DataType<uint8_t> {
  static constexpr uint8_t kCode = kDLUInt;
};
template <>
struct DataType<uint16_t> {
  static constexpr uint8_t kCode = kDLUInt;
};

inline void check_layout(const DLTensor* tensor, const char* name,
                         std::initializer_list<int64_t> shape) {
  if (tensor == nullptr) throw Error(std::string(name) + " is missing");
  if (tensor->device.device_type != kDLCPU)
    throw Error(std::string(name) + " is not on the CPU", AQ_UNSUPPORTED);
  bool right = tensor->ndim == static_cast<int32_t>(shape.size());
  int32_t i = 0;
  for (const int64_t d : shape) right = right && (d < 0 || tensor->shape[i] == d) && ++i > 0;
  if (!right) throw Error(std::string(name) + " has not the shape that was expected");
  if (tensor->strides == nullptr) return;
  int64_t stride = 1;
  for (i = tensor->ndim - 1; i >= 0; i--) {
    if (tensor->shape[i] != 1 && tensor->strides[i] != stride)
      throw Error(std::string(name) + " is not compact");
    stride *= tensor->shape[i];
  }
}

inline void* data_of(const DLTensor* tensor) {
  return static_cast<char*>(tensor->data) + tensor->byte_offset;
}

/// The elements of a compact CPU tensor of type T. -1 in `shape` matches any size. If the tensor
/// does not fit, an Error names the argument.
template <typename T>
T* view(const DLTensor* tensor, const char* name, std::initializer_list<int64_t> shape) {
  check_layout(tensor, name, shape);
  const DLDataType type = tensor->dtype;
  if (type.code != DataType<std::remove_const_t<T>>::kCode || type.bits != 8 * sizeof(T) ||
      type.lanes != 1)
    throw Error(std::string(name) + " has not the element type that was expected");
  return static_cast<T*>(data_of(tensor));
}

/// The same for a tensor that may be absent; returns nullptr if it is.
template <typename T>
T* optional_view(const DLTensor* tensor, const char* name, std::initializer_list<int64_t> shape) {
  return tensor == nullptr ? nullptr : view<T>(tensor, name, shape);
}

}  // namespace aq
