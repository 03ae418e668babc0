#include "base/interrupt.h"

#include <unistd.h>

#include <csignal>
#include <initializer_list>

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
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    if (::sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN)
      ::sigaction(signal, &action, nullptr);
  }
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
}

int interrupt_signal() { return signalled; }

void check_interrupt() {
  if (signalled != 0) throw Interrupted();
}

}  // namespace aqhost
