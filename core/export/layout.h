#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "checkpoint/source.h"
#include "plugin/format.h"

namespace aqhost {

/// The conventions that an export can follow.
enum class Layout : uint8_t { kCompressedTensors, kGptq };

/// The suffix of the tensor with the global scale of a module's activations.
inline constexpr std::string_view kInputGlobalScale = "input_global_scale";

/// Whether activations rounded to `format` (null: not rounded) have such a scale.
bool has_input_global(const Format* format);

/// The tensors, in order and named by suffix, in which a [rows, cols] matrix of `format` is stored,
/// including those of the activations to which its input is rounded (null: not rounded). Throws an
/// Error as gptq_tensors() does.
std::vector<TensorInfo> stored_tensors(Layout layout, const Format& format,
                                       const Format* activations, int64_t rows, int64_t cols);

/// The bytes of those tensors, without tensors that hold only a shape or an order (weight_shape,
/// g_idx).
int64_t stored_bytes(const std::vector<TensorInfo>& tensors);

}  // namespace aqhost
