#include "base/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace aqhost {
namespace {

constexpr auto kTerminalInterval = std::chrono::milliseconds(100);
constexpr auto kPlainInterval = std::chrono::seconds(10);

/// The value of an environment variable; "" if there is none.
std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Whether a variable says yes: it is neither empty nor "false".
bool is_set(const char* name) { return variable(name) != "" && variable(name) != "false"; }

/// "950", "3.1 M".
std::string format_count(double n) {
  constexpr std::array units{"", " k", " M", " G"};
  std::size_t unit = 0;
  for (; n >= 1000 && unit + 1 < units.size(); unit++) n /= 1000;
  return n < 10 ? fmt::format("{:.1f}{}", n, units[unit]) : fmt::format("{:.0f}{}", n, units[unit]);
}

}  // namespace

bool may_redraw(int descriptor) {
  return ::isatty(descriptor) == 1 && !is_set("CI") && variable("TERM") != "dumb";
}

bool may_color(int descriptor) { return may_redraw(descriptor) && variable("NO_COLOR").empty(); }

std::size_t terminal_width(int descriptor) {
  if (::isatty(descriptor) != 1) return 0;
  winsize size{};
  if (::ioctl(descriptor, TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return 80;
  return size.ws_col;
}

std::string format_duration(double seconds) {
  if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
  const auto s = static_cast<std::int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} min", s / 3600, s / 60 % 60);
}

std::string progress_line(const std::string& title, double done, double total,
                          const std::string& unit, double seconds, const std::string& detail,
                          double before, std::optional<double> left) {
  const double fraction = total > 0 ? std::clamp(done / total, 0.0, 1.0) : 0;
  std::string line = fmt::format("{} {:3.0f} %", title, 100 * fraction);
  const double rate = (done - before) / seconds;
  if (done - before > 0.02 * total && total > 0 && seconds > 0.5) {
    line += fmt::format(", {} {}/s", format_count(rate), unit);
    if (!left) left = std::max(0.0, total - done) / rate;
  }
  if (left) line += fmt::format(", {} left", format_duration(*left));
  return line + "  " + detail;
}

Progress::Progress(std::string title, double total, std::string unit, bool quiet)
    : title_(std::move(title)),
      unit_(std::move(unit)),
      total_(total),
      terminal_(may_redraw(STDERR_FILENO)),
      quiet_(quiet),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() { finish(); }

void Progress::expect(double seconds) {
  end_ = Clock::now() +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

void Progress::update(double done, const std::string& detail) {
  const auto now = Clock::now();
  if (quiet_) return;
  if (now - last_ < (terminal_ ? Clock::duration(kTerminalInterval) : kPlainInterval)) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  std::optional<double> left;
  if (end_) left = std::max(0.0, std::chrono::duration<double>(*end_ - now).count());
  draw(progress_line(title_, done, total_, unit_, seconds, detail, before_, left));
}

/// Uses stdio, which does not stop the program if the reader of stderr has gone away.
void Progress::draw(const std::string& line) {
  if (terminal_)
    std::fputs(("\r\x1b[K" + line.substr(0, terminal_width(STDERR_FILENO) - 1)).c_str(), stderr);
  else
    std::fputs((line + "\n").c_str(), stderr);
  std::fflush(stderr);
  drawn_ = terminal_;
}

void Progress::finish() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
  drawn_ = false;
}

}  // namespace aqhost
