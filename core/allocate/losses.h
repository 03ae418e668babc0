#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "base/observer.h"
#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"

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

/// Runs the original model on windows [n, tokens] i64, and solves each module of `plan` on the way
/// in the format that each of `candidates` gives it, as a run does (GPTQ or rounding to nearest, as
/// the recipe says). The plans have the same modules. Nothing is written, and later modules see the
/// original weights, so a module's losses do not depend on the formats of others. `options` are the
/// type and the device in which layers compute.
///
/// Costs the run of the model, and the solves of a run for each candidate. Memory: as a run without
/// error feedback, and the solver's for one candidate at a time. One thread; Interrupted is thrown
/// after a signal.
CandidateLosses measure_losses(const Source& source, const Model& model, const Plan& plan,
                               const std::vector<Plan>& candidates, const at::Tensor& windows,
                               const at::TensorOptions& options, RunObserver& observer);

}  // namespace aqhost
