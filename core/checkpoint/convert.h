#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "checkpoint/safetensors.h"

namespace aqhost {

/// out.size() elements of `tensor` (F16, BF16 or F32) from `begin` on, as float32. Error, naming
/// `where` and the tensor, for another type, a range outside the tensor, NaN or infinity.
void convert_f32(const StoredTensor& tensor, int64_t begin, std::span<float> out,
                 const std::string& where);

}  // namespace aqhost
