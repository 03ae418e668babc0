// aqhost: quantizes Mixture-of-Experts checkpoints. This file: which command, its options, and how
// it ends (0 done, 1 failed, 2 wrong usage, 75 a quantization that a signal stopped: run it again;
// 128 + signal of other commands: 129 SIGHUP, 130 SIGINT, 141 SIGPIPE, 143 SIGTERM).

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <elf.h>
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sysexits.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <limits>
#include <new>
#include <sstream>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/nearest.h"
#include "command.h"
#include "run/quantize.h"
#include "version.h"

/// jemalloc's settings. It keeps freed memory for ten seconds, large pieces too: giving it back and
/// taking it again for the next tensor costs more than most of what is computed in it.
extern "C" const char* malloc_conf;
const char* malloc_conf = "oversize_threshold:0,dirty_decay_ms:10000,muzzy_decay_ms:0,retain:false";
extern "C" int mallctl(const char*, void*, std::size_t*, void*, std::size_t) __attribute__((weak));

namespace aqhost {
namespace {

constexpr std::array kCommands{&kQuantize, &kInspect,  &kPlan,   &kEval,   &kCompare,
                               &kStatus,   &kTokenize, &kVerify, &kPlugins};
constexpr std::array kLogLevels{"debug", "info", "warn", "error", "off"};

po::options_description options_of(const Command& command) {
  po::options_description all(fmt::format("Options of aqhost {}", command.name), 100, 60);
  command.add_options(all.add_options());
  all.add_options()("json", "print the result as JSON")("threads", po::value<int64_t>(),
                                                        "threads to use (default: all cores)")(
      "log-level", po::value<std::string>()->default_value("info"),
      "debug, info, warn, error or off; messages go to stderr")("help,h", "this text")(
      "version", "print the version");
  return all;
}

void print_help(const Command& command) {
  const bool is_default = &command == &kQuantize;
  fmt::print("aqhost {} - {}\n\nusage: aqhost {}[options]\n{}\n", command.name, command.summary,
             is_default ? "" : fmt::format("{} ", command.name), command.details);
  if (is_default) {
    fmt::print("\nOther commands (aqhost COMMAND --help):\n");
    for (const Command* other : kCommands)
      if (other != &command) fmt::print("  {:<10} {}\n", other->name, other->summary);
  }
  std::ostringstream text;
  text << options_of(command);
  fmt::print("\n{}", text.str());
}

/// Boost's message; with the nearest option where one is misspelled, and with what was expected.
std::string explain(const po::error& error, const po::options_description& known) {
  if (const auto* value = dynamic_cast<const po::invalid_option_value*>(&error))
    return fmt::format("{}: a whole number was expected", value->what());
  const auto* unknown = dynamic_cast<const po::unknown_option*>(&error);
  if (unknown == nullptr) return error.what();
  std::vector<std::string> names;
  for (const auto& option : known.options()) names.push_back("--" + option->long_name());
  const std::string nearest = nearest_name(unknown->get_option_name(), names);
  std::string message = fmt::format("unknown option {}", unknown->get_option_name());
  if (!nearest.empty()) message += fmt::format(", did you mean {}?", nearest);
  return message;
}

po::variables_map parse(const Command& command, const std::vector<std::string>& arguments) {
  const po::options_description known = options_of(command);
  po::variables_map values;
  try {
    const auto style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
    po::positional_options_description positionals;
    if (command.positional != nullptr) positionals.add(command.positional, -1);
    po::store(po::command_line_parser(arguments)
                  .options(known)
                  .positional(positionals)
                  .style(style)
                  .run(),
              values);
    po::notify(values);
  } catch (const po::too_many_positional_options_error&) {
    throw UsageError(
        fmt::format("aqhost {} takes options only; another command comes before them: "
                    "aqhost COMMAND [options]",
                    command.name));
  } catch (const po::error& e) {
    throw UsageError(explain(e, known));
  }
  return values;
}

/// Whether that is the command, which is the one where none is named.
bool is_quantize(const std::vector<std::string>& arguments) {
  return arguments.empty() || arguments.front().starts_with("-") ||
         arguments.front() == kQuantize.name;
}

const Command& choose(std::vector<std::string>& arguments) {
  if (arguments.empty() || arguments.front().starts_with("-")) return kQuantize;
  const std::string name = arguments.front();
  arguments.erase(arguments.begin());
  std::vector<std::string> names;
  for (const Command* command : kCommands) {
    if (name == command->name) return *command;
    names.emplace_back(command->name);
  }
  throw UsageError(
      fmt::format("unknown command \"{}\"{}\nTry aqhost --help.", name, did_you_mean(name, names)));
}

void set_log_level(const std::string& level) {
  if (std::find(kLogLevels.begin(), kLogLevels.end(), level) == kLogLevels.end())
    throw UsageError(
        fmt::format("--log-level \"{}\": expected debug, info, warn, error or off", level));
  spdlog::set_level(spdlog::level::from_str(level));
}

void run_command(const Command& command, const po::variables_map& options, bool bare) {
  if (options.contains("help") || bare) return print_help(command);
  if (options.contains("version")) {
    fmt::print("aqhost {} (plugin ABI {}.{})\n", kVersion, AQ_ABI_MAJOR, AQ_ABI_MINOR);
    return;
  }
  set_log_level(options["log-level"].as<std::string>());
  if (options.contains("threads"))
    at::set_num_threads(static_cast<int>(integer(options, "threads", 1, 1024)));
  const at::NoGradGuard no_grad;
  command.run(options);
}

void run(std::vector<std::string> arguments) {
  const bool bare = arguments.empty();
  const Command& command = choose(arguments);
  try {
    run_command(command, parse(command, arguments), bare);
  } catch (const UsageError& e) {
    throw UsageError(fmt::format("{}\nTry aqhost {} --help.", e.what(), command.name));
  }
}

int complain(const std::string& message, int status) {
  std::fputs(("aqhost: " + message + "\n").c_str(), stderr);
  return status;
}

/// The vector that the kernel puts behind the environment: pairs of a type and a value.
unsigned long auxiliary(char** environment, unsigned long type) {
  while (*environment != nullptr) environment++;
  const auto* pair = reinterpret_cast<const unsigned long*>(environment + 1);
  for (; pair[0] != AT_NULL; pair += 2)
    if (pair[0] == type) return pair[1];
  return 0;
}

/// LibTorch's OpenMP threads wait for work by spinning, up to milliseconds: on a machine that has
/// other work too they take its time and each other's (measured: 4 times slower under a load of two
/// processes a core). To spin about as long as sleeping and waking take costs nothing then, and
/// where nothing else runs it is 7 % faster than hardly to spin. The runtime reads this setting
/// once, when it is loaded, so the program starts itself again with it, unless the user has chosen,
/// under the name by which it was started, so that it is listed (ps, top, pkill) by that name too.
/// A program started by way of the dynamic linker (ld.so PROGRAM) has no such name and goes on.
/// Called before the libraries' own start, which takes most of a short run's time; so nothing of
/// theirs, nor getenv(), may be used.
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

/// Intel's MKL ends the process with a sentence of its own where the current folder is gone.
void require_current_folder() {
  static char path[4096];
  if (::syscall(SYS_getcwd, path, sizeof path) >= 0 || errno != ENOENT) return;
  constexpr std::string_view kMessage =
      "aqhost: the current folder has been deleted; change to another\n";
  if (::write(STDERR_FILENO, kMessage.data(), kMessage.size()) < 0) ::_exit(1);
  ::_exit(1);
}

/// What must come before the libraries' own start, with nothing of theirs.
void before_libraries(int /*argc*/, char** argv, char** environment) {
  hold_signals();
  require_current_folder();
  limit_spinning(argv, environment);
}

[[gnu::section(".preinit_array"),
  gnu::used]] void (*const before_libraries_start)(int, char**, char**) = before_libraries;

/// A shard is a file that stays open: as many as the system allows, not only its usual 1,024.
void allow_many_files() {
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &files);
}

/// The first arena is made before jemalloc has read oversize_threshold, and would give back every
/// large piece at once.
void keep_large_pieces() {
  std::size_t never = std::numeric_limits<std::size_t>::max() / 2;
  if (mallctl != nullptr)  // not in a build for sanitizers
    mallctl("arena.0.oversize_threshold", nullptr, nullptr, &never, sizeof never);
}

int run_and_report(const std::vector<std::string>& arguments) {
  try {
    check_interrupt();  // of one that came while the libraries started
    run(arguments);
    if (std::fflush(stdout) != 0) throw std::system_error(errno, std::generic_category());
    return 0;
  } catch (const UsageError& e) {
    return complain(e.what(), 2);
  } catch (const RunInterrupted& e) {
    return complain(e.what(), EX_TEMPFAIL);
  } catch (const Interrupted&) {
    if (is_quantize(arguments)) return complain("interrupted, nothing was written", EX_TEMPFAIL);
    return complain("interrupted", 128 + interrupt_signal());
  } catch (const Error& e) {
    return complain(e.what(), 1);
  } catch (const c10::Error& e) {
    return complain(fmt::format("LibTorch: {}", e.what_without_backtrace()), 1);
  } catch (const std::bad_alloc&) {
    return complain(is_quantize(arguments) ? "out of memory; use fewer --nsamples, a shorter "
                                             "--seqlen or a --memory-limit"
                                           : "out of memory",
                    1);
  } catch (const std::filesystem::filesystem_error& e) {
    return complain(fmt::format("{}: {}", e.path1().string(), e.code().message()), 1);
  } catch (const std::system_error& e) {                           // of printing
    if (e.code() == std::errc::broken_pipe) return 128 + SIGPIPE;  // as if the signal had come
    return complain(fmt::format("the result cannot be printed: {}", e.code().message()), 1);
  } catch (const std::exception& e) {
    return complain(e.what(), 1);
  }
}

}  // namespace
}  // namespace aqhost

int main(int argc, char** argv) {
  aqhost::keep_large_pieces();
  aqhost::allow_many_files();
  aqhost::install_interrupt_handler();
  spdlog::set_default_logger(spdlog::stderr_color_mt("aqhost"));
  spdlog::set_pattern("aqhost: %^%l%$: %v");
  const int status = aqhost::run_and_report({argv + 1, argv + argc});
  std::fflush(nullptr);
  ::_exit(status);  // LibTorch's destructors take 30 ms, and there is nothing that needs them
}
