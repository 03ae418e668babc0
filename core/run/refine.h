#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "checkpoint/source.h"
#include "forward/layer.h"
#include "plan/plan.h"
#include "run/report.h"
#include "run/solution.h"

namespace aqhost {

struct RefineOptions {
  int64_t steps = 0;
  int64_t batch = 16;  // windows a step
  uint64_t seed = 0;   // of the choice of windows
};

/// The refine setting of a layer: the most steps that one of its modules asks for.
RefineOptions refine_options(const Plan& plan, int32_t layer, uint64_t seed);

/// Learned rounding of a solved layer (SignRound, arXiv:2309.05516, from GPTQ's solution): the
/// codes of all modules that ask for it are chosen together, so that the layer's output on x comes
/// nearest to `target` (both [windows, tokens, hidden], of the quantized and of the original
/// stream); x is then replaced by that output. A weight lies somewhere in the cell of its code;
/// every step moves it against the sign of its gradient, by up to half a cell in all, and across a
/// border it takes the next code. Scales stay. Where the output did not come nearer in the end, the
/// codes stay too. `source` is the original checkpoint. Formats that only their plugin can round
/// are left as they are. Deterministic for one seed and thread count. Memory: about eight times the
/// layer's weights, and one batch's activations.
Refinement refine_layer(const Source& source, int32_t index, Layer& layer,
                        std::vector<Solution>& solutions, at::Tensor& x, const at::Tensor& target,
                        const RefineOptions& options);

}  // namespace aqhost
