#include "process_setup.h"

#include <elf.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <string_view>

#include "base/interrupt.h"
#include "base/progress.h"

/// The settings of jemalloc, which reads this variable when it starts. It keeps freed memory for
/// ten seconds, large allocations too, because returning a tensor's memory to the system and
/// fetching it again for the next tensor costs more than most computations on the tensor.
extern "C" const char* malloc_conf;
const char* malloc_conf = "oversize_threshold:0,dirty_decay_ms:10000,muzzy_decay_ms:0,retain:false";
extern "C" int mallctl(const char*, void*, std::size_t*, void*, std::size_t) __attribute__((weak));

namespace aqhost {
namespace {

/// The entry of a type in the auxiliary vector, pairs of a type and a value that the kernel puts
/// behind the environment; 0 if there is none.
unsigned long auxiliary(char** environment, unsigned long type) {
  while (*environment != nullptr) environment++;
  const auto* pair = reinterpret_cast<const unsigned long*>(environment + 1);
  for (; pair[0] != AT_NULL; pair += 2)
    if (pair[0] == type) return pair[1];
  return 0;
}

/// LibTorch's OpenMP threads wait for work by spinning, for up to milliseconds. On a machine with
/// other work, this takes time from that work and from each other (measured: a run is 4 times
/// slower under a load of two processes per core). Spinning for about as long as it takes to sleep
/// and wake avoids that, and on an idle machine it is 7 % faster than hardly spinning at all.
///
/// The OpenMP runtime reads this setting once, when it is loaded. So the program starts itself
/// again with the setting in its environment, unless the user has made a choice there. It does so
/// under the file name by which it was started, so that ps, top and pkill list it by that name. A
/// program that is started through the dynamic linker (ld.so PROGRAM) has no such name and
/// continues without the setting.
void limit_spinning(char** argv, char** environment) {
  static std::array<char*, 4096> longer;
  static char setting[] = "GOMP_SPINCOUNT=5000";
  std::size_t n = 0;
  for (; environment[n] != nullptr; n++) {
    const std::string_view variable = environment[n];
    if (variable.starts_with("OMP_WAIT_POLICY=") || variable.starts_with("GOMP_SPINCOUNT=")) return;
    if (n + 2 >= longer.size()) return;
    longer[n] = environment[n];
  }
  longer[n] = setting;
  const auto* name = reinterpret_cast<const char*>(auxiliary(environment, AT_EXECFN));
  const bool by_linker = auxiliary(environment, AT_BASE) == 0;
  if (name != nullptr && !by_linker) ::execve(name, argv, longer.data());
}

/// If the current folder has been deleted, Intel's MKL ends the process with a message of its own
/// when it is loaded. This message says what to do.
void require_current_folder() {
  static char path[4096];
  if (::syscall(SYS_getcwd, path, sizeof path) >= 0 || errno != ENOENT) return;
  constexpr std::string_view kMessage =
      "aqhost: the current folder has been deleted; change to another\n";
  if (::write(STDERR_FILENO, kMessage.data(), kMessage.size()) < 0) ::_exit(1);
  ::_exit(1);
}

/// The dynamic linker calls the functions of .preinit_array before it initializes the shared
/// libraries, which takes most of a short run's time. Signals must be held back from here on, MKL
/// would find the deleted folder later, and a restart after the initialization would cost its time
/// twice. The functions that are called here may use no library, not even getenv().
void before_libraries(int /*argc*/, char** argv, char** environment) {
  hold_signals();
  require_current_folder();
  limit_spinning(argv, environment);
}

[[gnu::section(".preinit_array"),
  gnu::used]] void (*const before_libraries_start)(int, char**, char**) = before_libraries;

/// Every shard is a file that stays open, so a large model may need more open files than the usual
/// limit of 1,024. This raises the limit to the maximum that the system allows.
void allow_many_files() {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
}

/// jemalloc creates its first arena before it has read oversize_threshold, and that arena would
/// return every large allocation to the system at once. This sets the threshold of that arena.
void keep_large_allocations() {
  std::size_t never = std::numeric_limits<std::size_t>::max() / 2;
  if (mallctl != nullptr)  // a build with sanitizers has no jemalloc
    mallctl("arena.0.oversize_threshold", nullptr, nullptr, &never, sizeof never);
}

}  // namespace

void set_up_process() {
  keep_large_allocations();
  allow_many_files();
  install_interrupt_handler();
  const auto colors =
      may_color(STDERR_FILENO) ? spdlog::color_mode::automatic : spdlog::color_mode::never;
  spdlog::set_default_logger(spdlog::stderr_color_mt("aqhost", colors));
  spdlog::set_pattern("aqhost: %^%l%$: %v");
}

void end_process(int status) {
  std::fflush(nullptr);
  ::_exit(status);
}

}  // namespace aqhost
