#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>

namespace aqhost {

/// Tells the user what a process waits for: after 5 seconds, and then each time after twice as
/// long. Used by one thread.
class WaitNotes {
 public:
  using Inform = std::function<void(const std::string& text)>;

  /// `inform` may be empty; then nobody is told.
  explicit WaitNotes(Inform inform) : inform_(std::move(inform)) {}

  /// To be called again and again during the wait. Passes on text() if it is time to, unless it is
  /// empty.
  template <typename Text>
  void waits_for(const Text& text) {
    if (!inform_ || Clock::now() - begin_ < next_) return;
    next_ *= 2;
    if (const std::string now = text(); !now.empty()) inform_(now);
  }

 private:
  using Clock = std::chrono::steady_clock;

  Inform inform_;
  Clock::time_point begin_ = Clock::now();
  Clock::duration next_ = std::chrono::seconds(5);
};

}  // namespace aqhost
