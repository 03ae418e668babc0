#pragma once

#include <functional>
#include <string>

namespace aqhost {

/// How a child process ended.
struct ChildEnd {
  bool in_time = true;
  int signal = 0;  // the signal that ended it, or 0
  int exit_code = 0;
  std::string said;  // what its body returned; empty if it did not return

  /// "it crashed (Segmentation fault)", "it did not answer within 60 s", "it ended the process", or
  /// "" if the body returned.
  std::string trouble(int seconds) const;
};

/// Runs `body`, which must not throw, in a forked child that exits when `body` returns, and waits
/// for at most `seconds`. This process must have only one thread. Throws an Error if the fork
/// fails.
ChildEnd run_in_child(int seconds, const std::function<std::string()>& body);

/// Whether this process has only one thread, so that a forked child of it can run any code.
bool has_one_thread();

}  // namespace aqhost
