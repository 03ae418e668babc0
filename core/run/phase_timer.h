#pragma once

#include <chrono>
#include <string>

#include "run/report.h"

namespace aqhost {

/// Seconds of a run by phase; each phase begins where the last ended.
class PhaseTimer {
 public:
  void begin(const std::string& phase);
  void end();
  /// Of the phases that have ended.
  const PhaseSeconds& seconds() const { return seconds_; }
  /// The seconds of an earlier try of the run, to go on from.
  void resume(PhaseSeconds seconds) { seconds_ = std::move(seconds); }

 private:
  using Clock = std::chrono::steady_clock;
  PhaseSeconds seconds_;
  std::string current_;
  Clock::time_point start_;
};

}  // namespace aqhost
