#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace aqhost {

/// The width in columns of the terminal behind a file descriptor; 0 if it is not a terminal.
std::size_t terminal_width(int descriptor);

/// Whether what is written to a file descriptor may move the cursor and have colours: it is a
/// terminal, TERM is not "dumb", and neither CI nor (for colours) NO_COLOR is set.
bool may_redraw(int descriptor);
bool may_color(int descriptor);

/// Shows the progress of a run on stderr. On a terminal this is one line that is redrawn at most
/// ten times per second; elsewhere, and with CI=true, it is a new line every ten seconds. Used by
/// one thread only.
class Progress {
 public:
  /// There are `total` units of work of the kind `unit` ("layers").
  Progress(std::string title, double total, std::string unit, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` units were finished before the work began; they do not count for the rate.
  void resume(double done) { before_ = done; }
  /// The work will take this many seconds from now on, in place of what follows from the rate.
  void expect(double seconds);
  /// `done` units are finished so far; `detail` says what is being worked on.
  void update(double done, const std::string& detail);
  /// Removes the line. The destructor calls this.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(const std::string& line);

  std::string title_, unit_;
  double total_, before_ = 0;
  bool terminal_, quiet_, drawn_ = false;
  Clock::time_point start_, last_;
  std::optional<Clock::time_point> end_;  // that is expected
};

/// "quantizing  42 %, 3.1 M weights/s, 12 s left  layer 1 of 3, solve". Rate and remaining time
/// appear once there is enough progress to estimate them. `before` units of `done` were finished
/// before the `seconds` began. `left` are the seconds that are left, if they are known better than
/// from the rate.
std::string progress_line(const std::string& title, double done, double total,
                          const std::string& unit, double seconds, const std::string& detail,
                          double before = 0, std::optional<double> left = {});

/// "0.4 s", "41 s", "3 min 05 s", "2 h 07 min".
std::string format_duration(double seconds);

}  // namespace aqhost
