#include "base/child.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <iterator>

#include "base/error.h"

namespace aqhost {
namespace {

[[noreturn]] void be_child(int out, const std::function<std::string()>& body) {
  // the parent's handling of crashes is not meant for the child
  for (const int fatal : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV}) signal(fatal, SIG_DFL);
  const std::string said = body() + '\n';
  const bool whole = write(out, said.data(), said.size()) == static_cast<ssize_t>(said.size());
  _exit(whole ? 0 : 1);
}

/// Reads from `in` until it is closed; returns false if that takes longer than `seconds`.
bool read_all(int in, int seconds, std::string& text) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(seconds);
  std::array<char, 4096> buffer{};
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    pollfd ready{in, POLLIN, 0};
    const int polled = left.count() > 0 ? poll(&ready, 1, static_cast<int>(left.count())) : 0;
    if (polled < 0 && errno == EINTR) continue;
    if (polled <= 0) return false;
    const ssize_t n = read(in, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0;
    text.append(buffer.data(), static_cast<std::size_t>(n));
  }
}

}  // namespace

std::string ChildEnd::trouble(int seconds) const {
  if (!in_time) return fmt::format("it did not answer within {} s", seconds);
  if (signal != 0) return fmt::format("it crashed ({})", strsignal(signal));
  if (said.empty()) return fmt::format("it ended the process (status {})", exit_code);
  return "";
}

ChildEnd run_in_child(int seconds, const std::function<std::string()>& body) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) fail("cannot make a pipe: {}", std::strerror(errno));
  const pid_t child = fork();
  if (child < 0) fail("cannot start a child process: {}", std::strerror(errno));
  if (child == 0) {
    close(ends[0]);
    be_child(ends[1], body);
  }
  close(ends[1]);
  ChildEnd end;
  end.in_time = read_all(ends[0], seconds, end.said);
  close(ends[0]);
  if (!end.in_time) kill(child, SIGKILL);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
  if (WIFEXITED(status)) end.exit_code = WEXITSTATUS(status);
  return end;
}

bool has_one_thread() {
  std::error_code error;  // ignored: there may be no /proc
  const std::filesystem::directory_iterator threads("/proc/self/task", error);
  return !error && std::distance(begin(threads), end(threads)) == 1;
}

}  // namespace aqhost
