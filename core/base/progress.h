#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace aqhost {

/// Progress of a run on stderr: on a terminal one line, redrawn at most ten times a second, with
/// rate and time left; elsewhere a plain line every ten seconds. Owned by one thread.
class Progress {
 public:
  /// `total` units of work named `unit` ("layers"); weights of unequal units are the caller's.
  Progress(std::string title, double total, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` units are finished in all; `detail` says what is being worked on.
  void update(double done, const std::string& detail);
  /// Removes the line; called by the destructor.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(double done, const std::string& detail, Clock::time_point now);

  std::string title_;
  double total_;
  bool terminal_, quiet_, drawn_ = false;
  Clock::time_point start_, last_;
};

/// "41 s", "3 min 05 s", "2 h 07 min".
std::string format_duration(double seconds);

}  // namespace aqhost
