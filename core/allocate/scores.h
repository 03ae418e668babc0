#pragma once

#include <cstdint>
#include <vector>

#include "allocate/alpha.h"
#include "allocate/losses.h"
#include "plan/plan.h"

namespace aqhost {

/// What a module costs in each format: [candidate][module of the plan].
using Scores = std::vector<std::vector<double>>;

/// The score "loss": an estimate of the KL divergence, in nats per token, that a module's errors
/// cause. `sensitivity` is output_sensitivity() of each module. The routed experts of a layer that
/// share a role share their sensitivity and the weight of their tokens: with S the sum of the one
/// and T the sum of the other, a module costs its loss times S / T.
Scores loss_scores(const CandidateLosses& losses, const std::vector<double>& sensitivity,
                   const Plan& plan);

/// The score "error": the loss of each module divided by the number of calibration tokens, as if
/// all outputs mattered equally.
Scores error_scores(const CandidateLosses& losses, int64_t tokens);

/// The score "alpha", that of AlphaQ (arXiv:2606.04980): a module with n weights, in a format with
/// codes of b bits, costs n v (m / alpha)^gamma 4^-b. alpha and v are its spectrum's, m is the
/// median of alpha over all modules, and gamma is 1. So of two modules alike, the one with the
/// heavier tail gets more bits. A module that stays as it is costs nothing.
Scores alpha_scores(const std::vector<WeightSpectrum>& spectra, const Plan& plan,
                    const std::vector<Plan>& candidates);

}  // namespace aqhost
