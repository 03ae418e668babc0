#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "checkpoint/source.h"
#include "forward/layer.h"
#include "plan/plan.h"
#include "report/report.h"
#include "run/comm.h"
#include "run/solution.h"

namespace aqhost {

struct RefineOptions {
  int64_t steps = 0;
  int64_t batch = 16;  // windows per step, of all ranks together
  uint64_t seed = 0;   // of the choice of windows
};

/// The refine setting of a layer: that of the module with the maximum of steps.
RefineOptions refine_options(const Plan& plan, int32_t layer, uint64_t seed);

/// Learned rounding of a solved layer (SignRound, arXiv:2309.05516, which begins here with the
/// solution of GPTQ). The codes of all modules whose recipe has `refine` are chosen together, so
/// that the layer's output on x comes as near as possible to `target`. Both are hidden states
/// [windows, tokens, hidden]: x before the layer in the quantized model, `target` after the layer
/// in the original model. x is then replaced by the layer's output. Both may be in the host's
/// memory while the layer is on a GPU.
///
/// A weight lies somewhere in the cell of its code. Every step moves it against the sign of its
/// gradient, by up to half a cell in all steps together; if it crosses a border, it takes the next
/// code. Scales do not change, and no code changes if the output has not come nearer. Modules whose
/// format only a plugin can round are left as they are. `source` is the original checkpoint. The
/// result is the same for the same seed, number of threads and number of ranks.
///
/// If a run has several ranks, each calls this with the same layer, with the `solutions` that it
/// owns, and with its own windows, which were dealt to the ranks in turn. A step uses
/// `options.batch` windows of all ranks together: the gradients of a module are added up on its
/// owner, which moves the weights and sends the new ones to all ranks. So all ranks together send 8
/// bytes per weight and step for each rank but one. The errors are those of all windows.
///
/// Memory: three times the layer's weights, the cells of the rank's own solutions (six times their
/// weights), and the activations of its windows of one step.
Refinement refine_layer(const Source& source, const Plan& plan, int32_t index, Layer& layer,
                        std::vector<Solution>& solutions, at::Tensor& x, const at::Tensor& target,
                        const RefineOptions& options, Comm& comm);

}  // namespace aqhost
