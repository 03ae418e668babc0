#pragma once

#include <ATen/ATen.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "report/report.h"

namespace aqhost {

/// Measures the seconds of a run by phase, and the memory that the process was seen to hold in
/// each: what it held at an end of the phase, or the peak of the process if that grew in the phase.
/// So the largest of these numbers is exact, and another may be too small. Of a GPU, the peak of
/// each phase is known, with what other threads hold there at the same time. Used by one thread
/// only, and no two timers may measure the same GPU at the same time.
class PhaseTimer {
 public:
  /// `device` is the GPU whose memory is measured as well, if it is not the CPU.
  explicit PhaseTimer(at::Device device = at::kCPU) : device_(device) {}

  /// Begins a phase, which may have been measured before, and ends the current one.
  void begin(const std::string& phase);
  void end();
  /// The seconds of the phases that have ended.
  const PhaseSeconds& seconds() const { return seconds_; }
  const PhaseBytes& memory() const { return memory_; }
  /// The most bytes of tensors that the GPU held at once in each phase; empty on the CPU.
  const PhaseBytes& device_memory() const { return device_memory_; }
  /// The most bytes of tensors that the GPU has held at once so far, in a phase or between two;
  /// none on the CPU.
  std::optional<int64_t> peak_device_bytes();
  /// Calls `begun` with the name of each phase that begins from now on.
  void on_begin(std::function<void(const std::string& phase)> begun) { begun_ = std::move(begun); }
  /// Goes on from the seconds of an earlier try of the run, in place of those measured so far.
  void resume(PhaseSeconds seconds) { seconds_ = std::move(seconds); }

 private:
  using Clock = std::chrono::steady_clock;
  void note_device_peak();

  const at::Device device_;
  PhaseSeconds seconds_;
  PhaseBytes memory_, device_memory_;
  int64_t peak_ = 0;         // of the process, when the current phase began
  int64_t device_peak_ = 0;  // of the GPU, so far
  std::function<void(const std::string&)> begun_;
  std::string current_;
  Clock::time_point start_;
};

}  // namespace aqhost
