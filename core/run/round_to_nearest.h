#pragma once

#include <cstdint>

#include "checkpoint/source.h"
#include "plan/plan.h"
#include "run/unit_sink.h"

namespace aqhost {

/// Rounds the planned modules of all units from sink.next() on to nearest, without running the
/// model. Ranks take the modules in turn. There are `units` units in all. Memory: 9 bytes for each
/// of the weights that are rounded at the same time, which are 2^28 weights or those of one module.
void round_to_nearest(const Source& original, const Plan& plan, int32_t units, UnitSink& sink,
                      PhaseTimer& timer);

}  // namespace aqhost
