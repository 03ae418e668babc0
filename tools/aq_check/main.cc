// aq-check: checks whether a plugin follows the rules of the SDK's headers, and prints a line for
// each rule. It does the same as `aqhost plugins --check`, in a program that third parties run in
// their CI. It exits with 0 if all rules hold, with 1 if one is broken, and with 2 on wrong usage.

#include <fmt/format.h>

#include <boost/program_options.hpp>
#include <iostream>

#include "conformance/rules.h"

namespace po = boost::program_options;

namespace {

int run(const po::variables_map& options) {
  std::optional<std::filesystem::path> model;
  if (options.contains("model")) model = options["model"].as<std::string>();
  const auto verdicts = aqhost::check_plugin(options["file"].as<std::string>(), model);
  for (const aqhost::Verdict& verdict : verdicts) fmt::print("{}\n", aqhost::to_line(verdict));
  return aqhost::all_hold(verdicts) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  po::options_description shown("usage: aq-check FILE [--model DIR]\n\nOptions");
  auto add = shown.add_options();
  add("model", po::value<std::string>(),
      "Let the plugin describe this checkpoint, which may be a small one.");
  add("help,h", "Print this text.");
  po::options_description all(shown);
  all.add_options()("file", po::value<std::string>()->required());
  po::positional_options_description positionals;
  positionals.add("file", 1);
  po::variables_map options;
  try {
    po::store(po::command_line_parser(argc, argv).options(all).positional(positionals).run(),
              options);
    if (options.contains("help")) {
      std::cout << shown;
      return 0;
    }
    po::notify(options);
  } catch (const po::error& e) {
    fmt::print(stderr, "aq-check: {}; see aq-check --help\n", e.what());
    return 2;
  }
  return run(options);
} catch (const std::exception& e) {
  fmt::print(stderr, "aq-check: {}\n", e.what());
  return 1;
}
