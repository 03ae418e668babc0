#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "checkpoint/source.h"

namespace aqhost {

/// Whether none of the values is infinite or NaN.
bool all_finite(std::span<const float> values);

/// Converts bytes of a tensor (F16, BF16 or F32) to float32: out.size() elements from element
/// `begin` on. Throws an Error that names `where` and the tensor for another type, NaN or infinity.
void convert_f32(const TensorInfo& tensor, std::span<const std::byte> bytes, int64_t begin,
                 std::span<float> out, const std::string& where);

}  // namespace aqhost
