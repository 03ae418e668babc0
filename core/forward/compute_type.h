#pragma once

#include <ATen/ATen.h>

#include <string>

#include "checkpoint/source.h"

namespace aqhost {

/// The type in which layers compute: "float32", "bfloat16", or "auto". "auto" is bfloat16 if
/// `source` stores its matrices in bfloat16, so that none is changed, and `device` can multiply
/// them (a GPU, or a CPU with AVX512-BF16); otherwise float32. Another name is a UsageError.
at::ScalarType compute_type(const std::string& name, const Source& source,
                            at::Device device = at::kCPU);

}  // namespace aqhost
