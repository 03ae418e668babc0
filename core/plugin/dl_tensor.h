#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "checkpoint/dtype.h"

namespace aqhost {

/// A compact CPU DLTensor over memory of the host, for the duration of a call.
class DlTensor {
 public:
  DlTensor(const void* data, DLDataType dtype, std::initializer_list<int64_t> shape)
      : shape_(shape) {
    init(data, dtype);
  }
  DlTensor(const void* data, DLDataType dtype, std::vector<int64_t> shape)
      : shape_(std::move(shape)) {
    init(data, dtype);
  }
  DlTensor(const DlTensor&) = delete;
  DlTensor& operator=(const DlTensor&) = delete;

  DLTensor* get() { return &tensor_; }
  /// Returns nullptr if there is no data.
  DLTensor* get_or_null() { return tensor_.data != nullptr ? &tensor_ : nullptr; }

 private:
  void init(const void* data, DLDataType dtype) {
    tensor_ = {};
    tensor_.data = const_cast<void*>(data);
    tensor_.device = {kDLCPU, 0};
    tensor_.ndim = static_cast<int32_t>(shape_.size());
    tensor_.dtype = dtype;
    tensor_.shape = shape_.data();
  }

  std::vector<int64_t> shape_;
  DLTensor tensor_;
};

inline constexpr DLDataType kDlF32{kDLFloat, 32, 1}, kDlI32{kDLInt, 32, 1};
/// DLPack 0.6 has no names for the float8 types; it treats them as bytes.
inline DLDataType dl_type(DType type) {
  const auto is = [type](std::initializer_list<DType> types) {
    return std::find(types.begin(), types.end(), type) != types.end();
  };
  const uint8_t code = type == DType::kBF16                                      ? kDLBfloat
                       : is({DType::kF16, DType::kF32, DType::kF64})             ? kDLFloat
                       : is({DType::kI8, DType::kI16, DType::kI32, DType::kI64}) ? kDLInt
                                                                                 : kDLUInt;
  return {code, static_cast<uint8_t>(8 * dtype_size(type)), 1};
}
inline DLDataType dl_code(int64_t bytes) { return {kDLUInt, static_cast<uint8_t>(8 * bytes), 1}; }

}  // namespace aqhost
