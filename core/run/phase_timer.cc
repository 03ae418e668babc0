#include "run/phase_timer.h"

#include <algorithm>

#include "base/memory.h"

namespace aqhost {

void PhaseTimer::begin(const std::string& phase) {
  end();
  current_ = phase;
  peak_ = peak_memory_bytes();
  if (begun_) begun_(phase);
  start_ = Clock::now();
}

void PhaseTimer::end() {
  if (current_.empty()) return;
  const double passed = std::chrono::duration<double>(Clock::now() - start_).count();
  const int64_t peak = peak_memory_bytes();
  int64_t& most = memory_[current_];
  most = std::max(most, peak > peak_ ? peak : held_memory_bytes());
  const auto it = std::find_if(seconds_.begin(), seconds_.end(),
                               [this](const auto& phase) { return phase.first == current_; });
  if (it != seconds_.end())
    it->second += passed;
  else
    seconds_.emplace_back(current_, passed);
  current_.clear();
}

}  // namespace aqhost
