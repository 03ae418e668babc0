#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace aqhost {

/// Columns of the terminal that a file descriptor is; 0 if it is none.
std::size_t terminal_width(int descriptor);

/// Progress of a run on stderr: on a terminal one line, redrawn at most ten times a second;
/// elsewhere a plain line every ten seconds. Owned by one thread.
class Progress {
 public:
  /// `total` units of work, of the kind `unit` ("layers").
  Progress(std::string title, double total, std::string unit, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` units are finished in all; `detail` says what is being worked on.
  void update(double done, const std::string& detail);
  /// Removes the line; called by the destructor.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(const std::string& line);

  std::string title_, unit_;
  double total_;
  bool terminal_, quiet_, drawn_ = false;
  Clock::time_point start_, last_;
};

/// "quantizing  42 %, 3.1 M weights/s, 12 s left  model.layers.1": rate and time left once there is
/// something to tell them from.
std::string progress_line(const std::string& title, double done, double total,
                          const std::string& unit, double seconds, const std::string& detail);

/// "0.4 s", "41 s", "3 min 05 s", "2 h 07 min".
std::string format_duration(double seconds);

}  // namespace aqhost
