#pragma once

#include <functional>
#include <string>

namespace aqhost {

/// How a child process ended.
struct ChildEnd {
  bool in_time = true;
  int signal = 0;  // that ended it, or 0
  int exit_code = 0;
  std::string said;  // what its body returned; empty if it did not get so far

  /// "it crashed (Segmentation fault)", "it did not answer within 60 s", "it ended the process", or
  /// "" where the body returned.
  std::string trouble(int seconds) const;
};

/// Runs `body`, which must not throw, in a forked child that ends with it, and waits for at most
/// `seconds`. The process must have one thread. Error if there can be no child.
ChildEnd run_in_child(int seconds, const std::function<std::string()>& body);

/// Whether this process has one thread, so that it may fork and go on.
bool has_one_thread();

}  // namespace aqhost
