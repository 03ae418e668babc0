#include "run/phase_timer.h"

#include <algorithm>

namespace aqhost {

void PhaseTimer::begin(const std::string& phase) {
  end();
  current_ = phase;
  start_ = Clock::now();
}

void PhaseTimer::end() {
  if (current_.empty()) return;
  const double passed = std::chrono::duration<double>(Clock::now() - start_).count();
  const auto it = std::find_if(seconds_.begin(), seconds_.end(),
                               [this](const auto& phase) { return phase.first == current_; });
  if (it != seconds_.end())
    it->second += passed;
  else
    seconds_.emplace_back(current_, passed);
  current_.clear();
}

}  // namespace aqhost
