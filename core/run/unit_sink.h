#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/observer.h"
#include "plan/plan.h"
#include "run/exporter.h"
#include "run/layer_walk.h"
#include "run/phase_timer.h"
#include "run/report.h"
#include "run/solution.h"
#include "run/store.h"

namespace aqhost {

/// Takes what is finished to the files, the report and the observer, unit by unit (see Exporter).
/// One call at a time.
class UnitSink {
 public:
  /// `finished`: by an earlier try.
  UnitSink(Exporter& exporter, RunStore& store, PhaseTimer& timer, const Plan& plan,
           RunObserver& observer, Finished finished);
  ~UnitSink();
  UnitSink(const UnitSink&) = delete;
  UnitSink& operator=(const UnitSink&) = delete;

  /// The unit that is worked on, or the first to be.
  int32_t next() const { return next_; }
  /// Tells the observer what is being worked on.
  void say(const std::string& what);

  void begin_unit();
  void take(const std::vector<Solution>& solutions);
  /// What calibration saw of a layer's experts; those of `starved` (layer, expert) saw fewer than
  /// the `needed` tokens.
  void add(const std::vector<ExpertCoverage>& coverage, int64_t needed,
           const std::set<std::pair<int32_t, int32_t>>& starved);
  void add(const Refinement& refinement);
  /// `states`: the hidden states behind the unit, if it has any; see RunStore::finish().
  void finish_unit(const BoundaryStates& states = {});

  /// The rows of all finished units, once.
  ReportRows rows() { return std::move(all_rows_); }

 private:
  Exporter& exporter_;
  RunStore& store_;
  PhaseTimer& timer_;
  RunObserver& observer_;
  ReportRows all_rows_, rows_;
  int32_t next_;
  double done_ = 0;  // weights
};

}  // namespace aqhost
