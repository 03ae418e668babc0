#include "base/interrupt.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdint>

namespace aqhost {
namespace {

constexpr std::array kHeld{SIGINT, SIGTERM, SIGHUP};

volatile std::sig_atomic_t signalled = 0;

void on_signal(int signal) {
  if (signalled != 0) ::_exit(128 + signal);
  signalled = signal;
}

}  // namespace

void hold_signals() {
  uint64_t set = 0;  // as the kernel has it: a system call needs no library that has started
  for (const int signal : kHeld) set |= uint64_t{1} << (signal - 1);
  ::syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, nullptr, sizeof set);
}

void install_interrupt_handler() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  sigset_t held;
  sigemptyset(&held);
  for (const int signal : kHeld) {
    struct sigaction before {};
    if (::sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN)
      ::sigaction(signal, &action, nullptr);
    sigaddset(&held, signal);
  }
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  ::pthread_sigmask(SIG_UNBLOCK, &held, nullptr);
}

int interrupt_signal() { return signalled; }

void check_interrupt() {
  if (signalled != 0) throw Interrupted();
}

}  // namespace aqhost
