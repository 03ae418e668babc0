#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <future>
#include <vector>

#include "calibrate/hessian.h"
#include "plan/plan.h"
#include "quant/quantize.h"
#include "run/phase_timer.h"
#include "run/solution.h"

namespace aqhost {

/// Takes the solutions that were made together, once they are done. One call at a time; on a GPU
/// from another thread, while the GPU continues.
using SolutionSink = std::function<void(std::vector<Solution>)>;

/// Modules that share one input. They are solved as the rows of one matrix.
struct SolveGroup {
  struct Member {
    const PlannedModule* planned;
    at::Tensor weight;       // [out, in], as the layer has it
    float input_global = 1;  // see Solution
  };
  std::vector<Member> members;
  Hessian hessian;
  int64_t tokens = 0;  // see Solution
  double weight = 0;
  bool starved = false;
};

/// What is solved together: the groups of one stage of a layer, or a chunk of its experts.
struct SolveTask {
  std::vector<SolveGroup> groups;
};

/// The values that a module has from now on.
struct NewWeight {
  const Module* module;
  at::Tensor values;  // [out, in] f32, a view
};

/// Solves weights [E, out, in] of modules like `module`, each matrix under its Hessian, as the
/// module's recipe says.
QuantizedBatch solve_weights(const PlannedModule& module, const RunSettings& settings,
                             const at::Tensor& weights, const std::vector<Hessian>& hessians);

/// Turns tasks into solutions. It knows formats and Hessians, and no layer. One thread.
class Solver {
 public:
  Solver(const RunSettings& settings, SolutionSink sink, PhaseTimer& timer);

  /// Solves the task, gives the solutions to the sink, and returns the new weight of every member.
  /// Groups of one format, algorithm and shape are solved as one batch. Error if a Hessian is not
  /// finite, or if the sink failed with an earlier task.
  std::vector<NewWeight> solve(const SolveTask& task);
  /// Waits until the sink has everything. Error if it failed.
  void wait();

 private:
  void solve_alike(const std::vector<SolveGroup>& groups, std::vector<NewWeight>& weights);
  void hand_over(const std::vector<SolveGroup>& groups, const QuantizedBatch& solved);

  const RunSettings& settings_;
  SolutionSink sink_;
  PhaseTimer& timer_;
  std::future<void> handing_over_;
};

}  // namespace aqhost
