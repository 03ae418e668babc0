#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/observer.h"
#include "plan/plan.h"
#include "report/report.h"
#include "run/exporter.h"
#include "run/layer_walk.h"
#include "run/phase_timer.h"
#include "run/solution.h"
#include "run/store.h"
#include "run/time_left.h"

namespace aqhost {

/// Passes solutions on to the files, the report and the observer, unit by unit (see Exporter). If a
/// run has several ranks, each has a sink for its own solutions. Used by one thread at a time.
class UnitSink {
 public:
  /// `finished` is what an earlier try of the run has finished.
  UnitSink(Exporter& exporter, RunStore& store, Comm& comm, PhaseTimer& timer, const Plan& plan,
           RunObserver& observer, Finished finished);
  ~UnitSink();
  UnitSink(const UnitSink&) = delete;
  UnitSink& operator=(const UnitSink&) = delete;

  /// The number of the unit that has begun, or that is the next to begin.
  int32_t next() const { return next_; }
  /// The number of this rank, and of all ranks.
  int rank() const { return comm_.rank(); }
  int ranks() const { return comm_.size(); }

  /// Begins a unit on all ranks together.
  void begin_unit();
  /// Writes the solutions to the unit's shards, and adds the modules to the unit's report.
  void take(const std::vector<Solution>& solutions);
  /// Adds the coverage of a layer's experts to the unit's report, on rank 0. The `starved` experts
  /// received fewer than the `needed` tokens.
  void add(const std::vector<ExpertCoverage>& coverage, int64_t needed,
           const std::set<int32_t>& starved);
  /// Adds what learned rounding did, which is the same on all ranks, to the unit's report on rank
  /// 0.
  void add(const Refinement& refinement);
  /// `states` are the hidden states behind the unit, if it has any; see RunStore::finish().
  void finish_unit(const BoundaryStates& states = {});

  /// Hands over this rank's report on all finished units. To be called once.
  UnitReport take_report() { return std::move(finished_); }

 private:
  void tell_observer(const std::string& phase);

  Exporter& exporter_;
  RunStore& store_;
  Comm& comm_;
  PhaseTimer& timer_;
  RunObserver& observer_;
  UnitReport finished_, unit_;  // on all finished units, and on the unit that has begun
  int32_t next_;
  TimeLeft time_left_;
  std::string place_;                   // "layer 3 of 16, solve"
  std::optional<PhaseSeconds> before_;  // the timer's, when the unit began
  bool keeps_states_ = true;            // see RunStore::finish()
  double done_ = 0;  // the number of quantized weights, as if all ranks were as far as this one
};

}  // namespace aqhost
