#pragma once

#include <ATen/ATen.h>

#include <string>

#include "checkpoint/source.h"

namespace aqhost {

/// What layers compute in: "float32", "bfloat16", or "auto": bfloat16 if that is what `source`
/// stores its matrices in, so that none changes, and `device` multiplies it (a GPU, or a CPU with
/// AVX512-BF16); else float32. UsageError for another name.
at::ScalarType compute_type(const std::string& name, const Source& source,
                            at::Device device = at::kCPU);

}  // namespace aqhost
