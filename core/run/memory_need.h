#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"

namespace aqhost {

/// What a calibrated run holds at once on its device, in bytes, as near as is known before it.
struct MemoryNeed {
  int64_t layers = 0;  // hidden states, and the weights of the largest layer (of two on a GPU)
  int64_t solver = 0;  // beside them: the largest group of modules that is solved at once
  int64_t ends = 0;    // before or after the layers: hidden states, and the embedding or lm_head
};

/// `tokens` are those of all windows, `original_tokens` those of the windows that run through the
/// original model, too. `dtype` is that of layers; those with refine are in float32.
MemoryNeed memory_need(const Source& source, const Model& model, const Plan& plan, int64_t tokens,
                       int64_t original_tokens, at::ScalarType dtype, bool on_cpu);

/// What `limit` leaves for experts that are solved together, which is at least need.solver. Error,
/// beginning with `limit_name`, where it is less than the run needs.
int64_t room_for_experts(const MemoryNeed& need, int64_t limit, const std::string& limit_name);

}  // namespace aqhost
