#pragma once

#include <vector>

#include "checkpoint/dequantized_source.h"

namespace aqhost {

/// Finds the experts that a checkpoint with the quant_method "mxfp4" stores as gpt-oss does:
///   NAME_blocks  U8 [experts, rows, columns / 32, 16]: two E2M1 codes in a byte, the first one in
///                its low nibble
///   NAME_scales  U8 [experts, rows, columns / 32]: E8M0, 2^(byte - 127)
/// They stand for the tensor NAME [experts, columns, rows], since gpt-oss multiplies its stacked
/// weights from the right. See OCP MX v1.0, and convert_moe_packed_tensors() in
/// integrations/mxfp4.py of transformers.
std::vector<EncodedTensor> find_mxfp4_experts(const Source& stored);

}  // namespace aqhost
