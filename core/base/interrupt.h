#pragma once

#include <exception>

namespace aqhost {

/// Thrown by check_interrupt(); unwinding leaves nothing half-written.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

/// SIGINT, SIGTERM and SIGHUP set a flag; a second one ends the process at once. One that is
/// ignored already (SIGHUP under nohup) stays so. SIGXFSZ and SIGPIPE are ignored: the write that
/// caused them fails instead.
void install_interrupt_handler();

/// The signal that came, or 0.
int interrupt_signal();

/// Throws Interrupted once a signal came. Cheap; called between batches and matrices, any thread.
void check_interrupt();

}  // namespace aqhost
