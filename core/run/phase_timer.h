#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "report/report.h"

namespace aqhost {

/// Measures the seconds of a run by phase, and the memory that the process was seen to hold in
/// each: what it held at an end of the phase, or the peak of the process if that grew in the phase.
/// So the largest of these numbers is exact, and another may be too small. Used by one thread only.
class PhaseTimer {
 public:
  /// Begins a phase, which may have been measured before, and ends the current one.
  void begin(const std::string& phase);
  void end();
  /// The seconds of the phases that have ended.
  const PhaseSeconds& seconds() const { return seconds_; }
  const PhaseBytes& memory() const { return memory_; }
  /// Calls `begun` with the name of each phase that begins from now on.
  void on_begin(std::function<void(const std::string& phase)> begun) { begun_ = std::move(begun); }
  /// Goes on from the seconds of an earlier try of the run, in place of those measured so far.
  void resume(PhaseSeconds seconds) { seconds_ = std::move(seconds); }

 private:
  using Clock = std::chrono::steady_clock;
  PhaseSeconds seconds_;
  PhaseBytes memory_;
  int64_t peak_ = 0;  // of the process, when the current phase began
  std::function<void(const std::string&)> begun_;
  std::string current_;
  Clock::time_point start_;
};

}  // namespace aqhost
