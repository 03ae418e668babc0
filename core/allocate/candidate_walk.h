#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "base/observer.h"
#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "run/comm.h"
#include "run/solution.h"
#include "run/solver.h"

namespace aqhost {

/// What measuring is about, and how it runs. Everything is borrowed.
struct MeasureSetup {
  const Source& source;
  const Model& model;
  const Plan& plan;                     // it quantizes every module that is measured
  const std::vector<Plan>& candidates;  // which have the same modules
  at::TensorOptions options;            // the type and the device in which layers compute
  Comm& comm;
  RunObserver& observer;
};

/// Receives what walk_candidates() solves.
struct CandidateSink {
  /// A module that this rank has solved in the format of a candidate.
  std::function<void(std::size_t candidate, const Solution& solution)> solution;
  /// The new weight of a module, on every rank, in the type of the layer. May be empty.
  std::function<void(std::size_t candidate, const NewWeight& weight)> weight;
};

/// Runs the original model on windows [n, tokens] i64, and solves each module of `setup.plan` on
/// the way in the format that each of the candidates gives it, as a run does (GPTQ or rounding to
/// nearest, as the recipe says). Later modules see the original weights, so what is solved does not
/// depend on the formats of other modules. The layers before `first` are only run. `done` is called
/// behind each of the others, with its number; last of all behind lm_head, which is solved if the
/// plan says so, with the number of layers.
///
/// Ranks share the windows and the modules as in a run. Costs the run of the model, and the solves
/// of a run for each candidate. Memory: as a run without error feedback, and the solver's for one
/// candidate at a time. One thread; Interrupted is thrown after a signal.
void walk_candidates(const MeasureSetup& setup, const at::Tensor& windows, int32_t first,
                     const CandidateSink& sink, const std::function<void(int32_t layer)>& done);

}  // namespace aqhost
