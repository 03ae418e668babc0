#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "allocate/candidate_walk.h"
#include "allocate/measured_steps.h"

namespace aqhost {

/// What modules lose in formats. A row has an entry for each module of the plan.
struct CandidateLosses {
  /// [candidate][module]: the loss of the module's solve (see QuantizedBatch); 0 if the candidate
  /// leaves it as it is.
  std::vector<std::vector<double>> loss;
  /// [module]: the sum of the routing weights (to the routing power) of the tokens that its Hessian
  /// was made of; for a module that sees every token, their number.
  std::vector<double> weight;
};

/// Solves each module in every candidate, see walk_candidates(). Nothing but the losses is kept:
/// those of a layer are a step of `steps`, and those of lm_head the last one. `earlier` steps
/// belong to something else. The result is the same on all ranks; another number of ranks adds up
/// the Hessians in another order.
CandidateLosses measure_losses(const MeasureSetup& setup, const at::Tensor& windows,
                               MeasuredSteps& steps, int32_t earlier);

}  // namespace aqhost
