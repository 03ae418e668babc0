#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"

namespace aqhost {

/// The bytes that a calibrated run needs at the same time on its device, as precisely as they are
/// known before the run.
struct MemoryNeed {
  int64_t layers = 0;     // hidden states, and the weights of the largest layer (of two on a GPU)
  int64_t solver = 0;     // in addition: the largest group of modules that are solved together
  int64_t embedding = 0;  // outside the layers: hidden states, and the embedding or lm_head
};

/// `tokens` are those of all windows, `original_tokens` those of the windows that also run through
/// the original model. `dtype` is the type in which layers compute; layers with refine compute in
/// float32.
MemoryNeed memory_need(const Source& source, const Model& model, const Plan& plan, int64_t tokens,
                       int64_t original_tokens, at::ScalarType dtype, bool on_cpu);

/// The bytes that a limit leaves for the experts that are solved together, at least need.solver.
/// Throws an Error that begins with `limit_name` if the limit is less than the run needs.
int64_t room_for_experts(const MemoryNeed& need, int64_t limit, const std::string& limit_name);

}  // namespace aqhost
