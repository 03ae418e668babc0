#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "allocate/candidate_walk.h"
#include "allocate/measured_steps.h"
#include "allocate/parts.h"
#include "allocate/scores.h"

namespace aqhost {

/// The score "kl": the KL divergence from the original model, in nats per token, of the model in
/// which only one part is quantized, measured for each part in each candidate. The modules are
/// solved on windows [n, tokens] i64 of calibration, see walk_candidates(), and the divergence is
/// that of the next tokens of `text` [m, tokens] i64, computed in float32. A part whose modules lie
/// in several layers costs the sum of what it costs in each. The score of a part in a layer stands
/// at its first module there; the others have 0.
///
/// A layer is a step of `steps`, and lm_head the last one. Costs, besides walk_candidates(): for
/// each part and candidate, a run of `text` through the layers from the part's on; and reading the
/// layers behind a layer once for each layer. Memory: a layer's weights in every candidate, and the
/// hidden states of `text` for each part of a layer in each candidate. Ranks share the parts and
/// candidates; each runs all of `text`.
Scores measure_divergences(const MeasureSetup& setup, const std::vector<AllocatedGroup>& parts,
                           const at::Tensor& windows, const at::Tensor& text, MeasuredSteps& steps);

/// The number of windows of text for measure_divergences(), from 1 to 16, such that all runs of
/// parts together take at most as long as the original model takes for twice `windows` windows, or
/// as few more as 1 window makes.
int64_t divergence_windows(const MeasureSetup& setup, const std::vector<AllocatedGroup>& parts,
                           int64_t windows);

}  // namespace aqhost
