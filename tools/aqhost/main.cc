// aqhost quantizes Mixture-of-Experts checkpoints. This file chooses the command, parses its
// options, runs it and reports how it ended, with one of these exit statuses: 0 if the command is
// done, 1 if it failed, 2 if the command line is wrong, 75 if a signal stopped quantize or allocate
// (the same command continues), and otherwise 128 + the signal (129 SIGHUP, 130 SIGINT, 141
// SIGPIPE, 143 SIGTERM).

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sysexits.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <new>
#include <sstream>
#include <system_error>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/nearest.h"
#include "command.h"
#include "manual.h"
#include "process_setup.h"
#include "run/quantize.h"
#include "version.h"

namespace aqhost {
namespace {

constexpr std::array kCommands{&kQuantize, &kInspect, &kPlan,   &kAllocate, &kEval,   &kCompare,
                               &kConvert,  &kReport,  &kStatus, &kTokenize, &kVerify, &kPlugins};

void print_help(const Command& command, const OptionTable& table) {
  fmt::print("aqhost {} - {}\n\nusage:\n", command.name, command.summary);
  std::istringstream usage(command.usage);
  for (std::string line; std::getline(usage, line);) fmt::print("  aqhost {}\n", line);
  fmt::print("\n{}", wrap(command.details));
  if (&command == &kQuantize) {
    fmt::print("\nOther commands (aqhost COMMAND --help):\n");
    for (const Command* other : kCommands)
      if (other != &command) fmt::print("  {:<10} {}\n", other->name, other->summary);
  }
  fmt::print("\n{}", table.help());
}

/// The name of the command that the arguments begin with. If they begin with an option, or if there
/// are none, the command is quantize.
std::string command_name(const std::vector<std::string>& arguments) {
  const bool named = !arguments.empty() && !arguments.front().starts_with("-");
  return named ? arguments.front() : kQuantize.name;
}

const Command& find_command(const std::string& name) {
  std::vector<std::string> names;
  for (const Command* command : kCommands) {
    if (name == command->name) return *command;
    names.emplace_back(command->name);
  }
  throw UsageError(
      fmt::format("unknown command \"{}\"{}\nTry aqhost --help.", name, did_you_mean(name, names)));
}

struct CommonOptions {
  bool help = false, version = false;
  std::string log_level = "info";
};

/// Adds the options that every command has.
void add_common_options(OptionTable& table, CommonOptions& options) {
  table.choice("log-level", {"debug", "info", "warn", "error", "off"}, options.log_level,
               "Print messages of this level and above to stderr: debug, info, warn, error or "
               "off.");
  table.flag("help,h", options.help, "Print this text.");
  table.flag("version", options.version, "Print the version, and what it was built with.");
}

void print_version() {
  fmt::print("aqhost {} (plugin ABI {}.{})\n", kVersion, AQ_ABI_MAJOR, AQ_ABI_MINOR);
  for (const auto& [name, value] : kBuiltWith) fmt::print("{:<10}{}\n", name, value);
}

/// Prints the manual page or a completion. The build calls this, so no help text names it.
void print_described(const std::string& kind) {
  std::vector<CommandText> texts;
  for (const Command* command : kCommands) {
    CommonOptions common;
    OptionTable table(command->name);
    const std::function<void()> run =
        command->prepare(table);  // it owns what the table is bound to
    add_common_options(table, common);
    texts.push_back({command, table.describe(), table.bare_name()});
  }
  if (kind == "man") return fmt::print("{}", manual_page(texts));
  if (kind == "bash") return fmt::print("{}", bash_completion(texts));
  if (kind == "zsh") return fmt::print("{}", zsh_completion(texts));
  throw UsageError(fmt::format("--describe \"{}\": expected man, bash or zsh", kind));
}

void run_command(const Command& command, const std::vector<std::string>& arguments) {
  CommonOptions common;
  OptionTable table(command.name);
  const std::function<void()> run = command.prepare(table);
  add_common_options(table, common);
  table.parse(arguments);
  const std::set<std::string> given = table.given();
  // A signal may have come while the libraries started. kQuantize says itself what it has kept.
  if (&command != &kQuantize || given.contains("help") || given.contains("version"))
    check_interrupt();
  if (given.contains("help")) return print_help(command, table);
  if (given.contains("version")) return print_version();
  table.apply();
  spdlog::set_level(spdlog::level::from_str(common.log_level));
  const at::NoGradGuard no_grad;
  run();
}

void run(std::vector<std::string> arguments) {
  if (arguments.empty()) arguments.emplace_back("--help");
  if (arguments.size() == 2 && arguments[0] == "--describe") return print_described(arguments[1]);
  const std::string name = command_name(arguments);
  const Command& command = find_command(name);
  if (arguments.front() == name) arguments.erase(arguments.begin());
  try {
    run_command(command, arguments);
  } catch (const UsageError& e) {
    throw UsageError(fmt::format("{}\nTry aqhost {} --help.", e.what(), command.name));
  }
}

int complain(const std::string& message, int status) {
  std::fputs(("aqhost: " + message + "\n").c_str(), stderr);
  return status;
}

int run_and_report(const std::vector<std::string>& arguments) {
  const std::string name = command_name(arguments);
  const bool quantizes = name == kQuantize.name;
  try {
    run(arguments);
    if (std::fflush(stdout) != 0) throw std::system_error(errno, std::generic_category());
    return 0;
  } catch (const UsageError& e) {
    return complain(e.what(), 2);
  } catch (const RunInterrupted& e) {
    return complain(e.what(), EX_TEMPFAIL);
  } catch (const Interrupted&) {
    if (quantizes || name == kAllocate.name)
      return complain("interrupted, nothing was written", EX_TEMPFAIL);
    return complain("interrupted", 128 + interrupt_signal());
  } catch (const Error& e) {
    return complain(e.what(), 1);
  } catch (const c10::Error& e) {
    return complain(fmt::format("LibTorch: {}", e.what_without_backtrace()), 1);
  } catch (const std::bad_alloc&) {
    return complain(quantizes ? "out of memory; use fewer --nsamples, a shorter "
                                "--seqlen or a --memory-limit"
                              : "out of memory",
                    1);
  } catch (const std::filesystem::filesystem_error& e) {
    return complain(fmt::format("{}: {}", e.path1().string(), e.code().message()), 1);
  } catch (const std::system_error& e) {                           // stdout cannot be written
    if (e.code() == std::errc::broken_pipe) return 128 + SIGPIPE;  // as if the signal had come
    return complain(fmt::format("the result cannot be printed: {}", e.code().message()), 1);
  } catch (const std::exception& e) {
    return complain(e.what(), 1);
  }
}

}  // namespace
}  // namespace aqhost

int main(int argc, char** argv) {
  aqhost::set_up_process();
  aqhost::end_process(aqhost::run_and_report({argv + 1, argv + argc}));
}
