#pragma once

#include <ATen/ATen.h>

namespace aqhost {

/// A device that LibTorch takes for another than the CPU, although its memory is the host's and the
/// CPU computes for it. As on a GPU, an operation on tensors of both devices is an error, and the
/// bytes of its tensors are counted.
inline const at::Device kOtherDevice{at::kPrivateUse1, 0};

}  // namespace aqhost
