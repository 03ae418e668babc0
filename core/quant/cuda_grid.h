#pragma once

#include "cuda/grid.h"
#include "plugin/format.h"

namespace aqhost {

/// A described format (see cuda_rounds()) in the form that the kernels take.
cuda::Grid make_cuda_grid(const FormatDesc& desc);

}  // namespace aqhost
