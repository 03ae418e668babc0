#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace aqhost {

/// The width in columns of the terminal behind a file descriptor; 0 if it is not a terminal.
std::size_t terminal_width(int descriptor);

/// Shows the progress of a run on stderr. On a terminal this is one line that is redrawn at most
/// ten times per second; elsewhere it is a new line every ten seconds. Used by one thread only.
class Progress {
 public:
  /// There are `total` units of work of the kind `unit` ("layers").
  Progress(std::string title, double total, std::string unit, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` units are finished so far; `detail` says what is being worked on.
  void update(double done, const std::string& detail);
  /// Removes the line. The destructor calls this.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(const std::string& line);

  std::string title_, unit_;
  double total_;
  bool terminal_, quiet_, drawn_ = false;
  Clock::time_point start_, last_;
};

/// "quantizing  42 %, 3.1 M weights/s, 12 s left  model.layers.1". Rate and remaining time appear
/// once there is enough progress to estimate them.
std::string progress_line(const std::string& title, double done, double total,
                          const std::string& unit, double seconds, const std::string& detail);

/// "0.4 s", "41 s", "3 min 05 s", "2 h 07 min".
std::string format_duration(double seconds);

}  // namespace aqhost
