#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace aqhost {

/// Seconds of a run by phase; each phase begins where the last ended.
class PhaseTimer {
 public:
  void begin(const std::string& phase);
  void end();
  const std::vector<std::pair<std::string, double>>& seconds() const { return seconds_; }

 private:
  using Clock = std::chrono::steady_clock;
  std::vector<std::pair<std::string, double>> seconds_;  // in order of first begin()
  std::string current_;
  Clock::time_point start_;
};

}  // namespace aqhost
