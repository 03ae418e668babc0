// aqhost: quantizes Mixture-of-Experts checkpoints. This file: which command, its options, and how
// it ends (0 done, 1 failed, 2 wrong usage, 75 a quantization that a signal stopped: run it again;
// 128 + signal of other commands: 129 SIGHUP, 130 SIGINT, 141 SIGPIPE, 143 SIGTERM).

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sysexits.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <new>
#include <sstream>
#include <system_error>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/nearest.h"
#include "command.h"
#include "process_setup.h"
#include "run/quantize.h"
#include "version.h"

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
  aqhost::set_up_process();
  aqhost::end_process(aqhost::run_and_report({argv + 1, argv + argc}));
}
