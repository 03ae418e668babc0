#include "checkpoint/dtype.h"

#include <array>

namespace aqhost {
namespace {

struct Row {
  DType type;
  std::string_view name;
  int64_t size;
};

constexpr std::array kTypes{
    Row{DType::kBool, "BOOL", 1},      Row{DType::kU8, "U8", 1},
    Row{DType::kI8, "I8", 1},          Row{DType::kU16, "U16", 2},
    Row{DType::kI16, "I16", 2},        Row{DType::kU32, "U32", 4},
    Row{DType::kI32, "I32", 4},        Row{DType::kU64, "U64", 8},
    Row{DType::kI64, "I64", 8},        Row{DType::kF8E4M3, "F8_E4M3", 1},
    Row{DType::kF8E5M2, "F8_E5M2", 1}, Row{DType::kF8E8M0, "F8_E8M0", 1},
    Row{DType::kF16, "F16", 2},        Row{DType::kBF16, "BF16", 2},
    Row{DType::kF32, "F32", 4},        Row{DType::kF64, "F64", 8},
};

constexpr const Row& row(DType type) { return kTypes[static_cast<std::size_t>(type)]; }

constexpr bool in_order() {
  for (std::size_t i = 0; i < kTypes.size(); i++)
    if (kTypes[i].type != static_cast<DType>(i)) return false;
  return true;
}
static_assert(in_order());

}  // namespace

int64_t dtype_size(DType type) { return row(type).size; }

std::string_view dtype_name(DType type) { return row(type).name; }

std::optional<DType> parse_dtype(std::string_view name) {
  for (const Row& r : kTypes)
    if (r.name == name) return r.type;
  return std::nullopt;
}

}  // namespace aqhost
