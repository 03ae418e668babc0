#pragma once

#include <chrono>
#include <string>

#include "run/report.h"

namespace aqhost {

/// Measures the seconds of a run by phase. Used by one thread only.
class PhaseTimer {
 public:
  /// Begins a phase, which may have been measured before, and ends the current one.
  void begin(const std::string& phase);
  void end();
  /// The seconds of the phases that have ended.
  const PhaseSeconds& seconds() const { return seconds_; }
  /// Goes on from the seconds of an earlier try of the run, in place of those measured so far.
  void resume(PhaseSeconds seconds) { seconds_ = std::move(seconds); }

 private:
  using Clock = std::chrono::steady_clock;
  PhaseSeconds seconds_;
  std::string current_;
  Clock::time_point start_;
};

}  // namespace aqhost
