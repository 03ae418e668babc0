#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <future>
#include <string>
#include <vector>

#include "calibrate/hessian.h"
#include "plan/plan.h"
#include "quant/quantize.h"
#include "run/comm.h"
#include "run/phase_timer.h"
#include "run/solution.h"

namespace aqhost {

/// Receives solutions when they are complete: those of one batch, or of several small ones. There
/// is one call at a time; for a GPU it comes from another thread, while the GPU computes.
using SolutionSink = std::function<void(std::vector<Solution>)>;

/// Modules that share one input. They are solved as the rows of one matrix.
struct SolveGroup {
  struct Member {
    const PlannedModule* planned;
    at::Tensor weight;       // [out, in], in the type and on the device of the layer
    float input_global = 1;  // see Solution
  };
  std::vector<Member> members;
  Hessian hessian;
  bool starved = false;
};

/// The groups that are solved together: those of one stage of a layer, or of a chunk of its
/// experts.
struct SolveTask {
  std::vector<SolveGroup> groups;
  int64_t room = 0;  // bytes for solving them; 0: no limit. If they need more, rows are solved in
                     // parts (see rows_to_solve_at_once)
};

/// The values that replace the weight of a module.
struct NewWeight {
  const Module* module;
  at::Tensor values;  // [out, in] f32, or of the layer's type if another rank has solved it; a view
};

/// Solves weights [E, out, in], each matrix under its Hessian, within `room` bytes (see SolveTask).
/// modules[e] is one whose rows matrix e has; all have the same recipe. Throws an Error that names
/// the module whose Hessian is not finite. Memory is saved if the caller moves its tensors here.
QuantizedBatch solve_weights(const std::vector<const PlannedModule*>& modules,
                             const RunSettings& settings, at::Tensor weights,
                             std::vector<Hessian> hessians, int64_t room);

/// Adds up the Hessians of all ranks (see Comm::reduce()): hessians[i] of rank owners[i] becomes
/// the sum, and those of the other ranks lose their matrices. tokens() and weight() become the sums
/// on every rank. Does nothing if there is one rank.
void reduce_hessians(Comm& comm, std::vector<Hessian>& hessians, const std::vector<int>& owners);

/// A task whose groups are dealt to the ranks.
struct DealtTask {
  SolveTask own;                   // the groups of this rank, under the Hessians of all ranks
  std::vector<SolveGroup> groups;  // of all ranks, without Hessians
  std::vector<int> owners;         // of each of these groups: the rank that solves it
};

/// Deals the groups of a task to the ranks, such that each has about as much to solve, and adds up
/// their Hessians. `station` names what is being solved; see Comm::station().
DealtTask deal_task(SolveTask task, const std::string& station, Comm& comm, PhaseTimer& timer);
/// The new weights of all groups, given those that this rank has solved. The weights of the others
/// come in the type of the layer.
std::vector<NewWeight> share_weights(const DealtTask& dealt, const std::vector<NewWeight>& own,
                                     const std::string& station, Comm& comm, PhaseTimer& timer);

/// Solves the tasks of a walk through a layer. Used by one thread only.
class TaskSolver {
 public:
  virtual ~TaskSolver() = default;

  /// Returns the new weights of members. A member that is left out keeps its weight.
  virtual std::vector<NewWeight> solve(SolveTask task) = 0;
  /// Called once after the last task of a layer.
  virtual void wait() {}
};

/// Turns tasks into solutions. It knows formats and Hessians, but no layer.
///
/// If a run has several ranks, each has the same task with the Hessians of its own tokens. The
/// groups are dealt to the ranks; the owner of a group receives the sum of its Hessians, solves it,
/// and gives its solutions to its own sink.
class Solver : public TaskSolver {
 public:
  /// `station` names what is being solved, as "layer 5"; see Comm::station().
  Solver(const RunSettings& settings, Comm& comm, std::string station, SolutionSink sink,
         PhaseTimer& timer);

  /// Solves the task, gives the solutions to the sink, and returns the new weight of every member,
  /// on every rank. Groups with the same format, algorithm and shape are solved as one batch.
  /// Throws an Error if a Hessian is not finite, or the exception with which the sink failed in an
  /// earlier task.
  std::vector<NewWeight> solve(SolveTask task) override;
  /// Waits until the sink has received all solutions. Throws the exception with which it failed.
  void wait() override;

 private:
  std::vector<NewWeight> solve_here(SolveTask task);
  void solve_alike(std::vector<SolveGroup> groups, int64_t room, std::vector<NewWeight>& weights);
  void hand_over(const std::vector<SolveGroup>& groups, const QuantizedBatch& solved);
  void deliver(bool beside);

  /// Solutions of a batch whose codes and losses are still those of the batch, on the CPU.
  struct Unpacked {
    struct Place {
      int64_t matrix, row, rows;
    };
    QuantizedBatch batch;
    std::vector<Solution> solutions;
    std::vector<Place> places;  // of each solution in the batch
  };

  const RunSettings& settings_;
  Comm& comm_;
  const std::string station_;
  SolutionSink sink_;
  PhaseTimer& timer_;
  std::vector<Unpacked> collected_;  // what deliver() will give to the sink
  std::future<void> handing_over_;
};

}  // namespace aqhost
