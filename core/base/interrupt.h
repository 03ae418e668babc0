#pragma once

#include <exception>

namespace aqhost {

/// Thrown by check_interrupt(). Unwinding leaves no half-written files.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

/// Holds SIGINT, SIGTERM and SIGHUP back until install_interrupt_handler(), across exec() as well,
/// so that a signal that comes while the program's libraries start is handled like a later one. It
/// uses no library, so that it may be called before any has started.
void hold_signals();

/// SIGINT, SIGTERM and SIGHUP set a flag; a signal that hold_signals() has held back does so at
/// once. A second signal ends the process at once. A signal that is ignored already (SIGHUP under
/// nohup) stays ignored. SIGXFSZ and SIGPIPE are ignored, so that the write that caused them fails
/// instead.
void install_interrupt_handler();

/// The signal that was received, or 0.
int interrupt_signal();

/// Throws Interrupted if a signal was received. It is cheap and is called between batches and
/// matrices. Thread-safe.
void check_interrupt();

}  // namespace aqhost
