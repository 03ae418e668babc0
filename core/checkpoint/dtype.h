#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace aqhost {

/// Element types of safetensors files.
// clang-format off
enum class DType : uint8_t {
  kBool, kU8, kI8, kU16, kI16, kU32, kI32, kU64, kI64,
  kF8E4M3, kF8E5M2, kF8E8M0, kF16, kBF16, kF32, kF64,
};
// clang-format on

/// The number of bytes per element.
int64_t dtype_size(DType type);

/// The name that safetensors uses ("BF16"), and the inverse; nullopt for an unknown type.
std::string_view dtype_name(DType type);
std::optional<DType> parse_dtype(std::string_view name);

}  // namespace aqhost
