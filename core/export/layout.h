#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "checkpoint/source.h"
#include "plugin/format.h"

namespace aqhost {

/// The conventions an export follows.
enum class Layout : uint8_t { kCompressedTensors, kGptq };

/// The tensor of the scale for all tokens of a module's activations.
inline constexpr std::string_view kInputGlobalScale = "input_global_scale";

/// Whether activations rounded to `format` (null: as they come) have such a scale.
bool has_input_global(const Format* format);

/// The tensors by suffix, in order, that a [rows, cols] matrix of `format` is stored in, with those
/// of the activations that its input is rounded to (null: as they come). Error as gptq_tensors().
std::vector<TensorInfo> stored_tensors(Layout layout, const Format& format,
                                       const Format* activations, int64_t rows, int64_t cols);

/// Bytes of those tensors, without what tells but of shape and order (weight_shape, g_idx).
int64_t stored_bytes(const std::vector<TensorInfo>& tensors);

}  // namespace aqhost
