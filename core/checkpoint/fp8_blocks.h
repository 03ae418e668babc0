#pragma once

#include <vector>

#include "checkpoint/dequantized_source.h"

namespace aqhost {

/// Finds the matrices that a checkpoint with the quant_method "fp8" stores in FP8 blocks, as
/// DeepSeek-V3, Qwen3-FP8 and MiniMax-M2 are published:
///   NAME            F8_E4M3 [rows, columns], or [experts, rows, columns]
///   NAME_scale_inv  F32, BF16 or F8_E8M0 [(experts,) block rows, block columns]
/// An element is its code times the scale of its block (in spite of its name, it holds the scale
/// itself and not the inverse). A block has the size `weight_block_size` of config.json; the last
/// block of a row or column may be smaller. Every F8_E4M3 tensor must have its scales, and every
/// scale its tensor.
std::vector<EncodedTensor> find_fp8_blocks(const Source& stored);

}  // namespace aqhost
