#include "run/phase_timer.h"

#include <algorithm>

#include "base/memory.h"
#include "tensor/device.h"

namespace aqhost {

void PhaseTimer::begin(const std::string& phase) {
  end();
  note_device_peak();  // of the time between the phases
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
  note_device_peak();
  current_.clear();
}

/// Adds what the GPU has held at most since the last call to the current phase, if there is one.
void PhaseTimer::note_device_peak() {
  if (device_.is_cpu()) return;
  const int64_t peak = take_peak_device_bytes(device_);
  device_peak_ = std::max(device_peak_, peak);
  if (current_.empty()) return;
  int64_t& most = device_memory_[current_];
  most = std::max(most, peak);
}

std::optional<int64_t> PhaseTimer::peak_device_bytes() {
  if (device_.is_cpu()) return {};
  note_device_peak();
  return device_peak_;
}

}  // namespace aqhost
