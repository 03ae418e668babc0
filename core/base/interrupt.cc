#include "base/interrupt.h"

#include <unistd.h>

#include <csignal>

namespace aqhost {
namespace {

volatile std::sig_atomic_t signalled = 0;

void on_signal(int signal) {
  if (signalled != 0) ::_exit(128 + signal);
  signalled = signal;
}

}  // namespace

void install_interrupt_handler() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGHUP, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
}

void check_interrupt() {
  if (signalled != 0) throw Interrupted();
}

}  // namespace aqhost
