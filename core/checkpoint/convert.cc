#include "checkpoint/convert.h"

#include <aq/sdk/numeric.hpp>
#include <bit>
#include <cstring>

#include "base/error.h"

namespace aqhost {
namespace {

/// Elements are copied out, because the data in a safetensors file need not be aligned.
template <typename Element, typename Convert>
void convert(const std::byte* from, std::span<float> out, Convert to_float) {
  for (std::size_t i = 0; i < out.size(); i++) {
    Element element;
    std::memcpy(&element, from + i * sizeof element, sizeof element);
    out[i] = to_float(element);
  }
}

}  // namespace

bool all_finite(std::span<const float> values) {
  uint32_t worst = 0;  // there is no branch below, so that the loop vectorizes
  for (const float v : values) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(v) & 0x7fffffffu;
    worst = magnitude > worst ? magnitude : worst;
  }
  return worst < 0x7f800000u;
}

void convert_f32(const TensorInfo& tensor, std::span<const std::byte> bytes, int64_t begin,
                 std::span<float> out, const std::string& where) {
  const std::byte* from = bytes.data();
  switch (tensor.dtype) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), from, out.size_bytes());
      break;
    case DType::kBF16:
      convert<uint16_t>(from, out, aq::from_bf16);
      break;
    case DType::kF16:
      convert<uint16_t>(from, out, aq::from_f16);
      break;
    default:
      fail("{}: tensor {} is {}, expected F16, BF16 or F32", where, tensor.name,
           dtype_name(tensor.dtype));
  }
  if (all_finite(out)) return;
  for (std::size_t i = 0; i < out.size(); i++)
    if (!all_finite(out.subspan(i, 1)))
      fail("{}: tensor {}: element {} is {}", where, tensor.name, begin + static_cast<int64_t>(i),
           out[i]);
}

}  // namespace aqhost
