#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "checkpoint/reader.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "run/phase_timer.h"
#include "run/store.h"
#include "run/unit_sink.h"

namespace aqhost {

/// How many of the first layers have hidden states behind them that a later layer, or lm_head, is
/// solved with; 0 where the model is not run.
int32_t layers_with_states(const Model& model, const Plan& plan);

struct CalibratedRunOptions {
  at::ScalarType dtype = at::kFloat;  // that layers compute in
  at::Device device = at::kCPU;
  int64_t memory_limit = 0;  // see QuantizeOptions
  bool limit_is_standard = false;
  uint64_t seed = 0;  // of learned rounding
};

/// Runs windows [n, tokens] i64 through the layers from sink.next() on, and solves each layer's
/// planned modules on the way. `states`: behind the last finished layer; undefined if there is
/// none. Error if the memory limit is less than hidden states and layers need.
void run_calibrated(const Reader& original, const Model& model, const Plan& plan,
                    const at::Tensor& windows, const CalibratedRunOptions& options,
                    BoundaryStates states, UnitSink& sink, PhaseTimer& timer);

}  // namespace aqhost
