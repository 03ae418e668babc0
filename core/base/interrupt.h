#pragma once

#include <exception>

namespace aqhost {

/// Thrown by check_interrupt(); unwinding leaves nothing half-written.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

/// Holds SIGINT, SIGTERM and SIGHUP back until install_interrupt_handler(), over exec() too, so
/// that one which comes while the program's libraries start is told as a later one is. Needs no
/// library that has started, so it may be called before any has.
void hold_signals();

/// SIGINT, SIGTERM and SIGHUP set a flag, one that hold_signals() has held back at once; a second
/// one ends the process at once. One that is ignored already (SIGHUP under nohup) stays so. SIGXFSZ
/// and SIGPIPE are ignored: the write that caused them fails instead.
void install_interrupt_handler();

/// The signal that came, or 0.
int interrupt_signal();

/// Throws Interrupted once a signal came. Cheap; called between batches and matrices, any thread.
void check_interrupt();

}  // namespace aqhost
