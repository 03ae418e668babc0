#include "manual.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <string_view>

#include "version.h"

namespace aqhost {
namespace {

/// Options that every command has. The page describes them once.
constexpr std::array kOfEveryCommand{"log-level", "help", "version"};

bool of_every_command(const OptionText& option) {
  return std::find(kOfEveryCommand.begin(), kOfEveryCommand.end(), option.name) !=
         kOfEveryCommand.end();
}

/// `text` as roff that shows it as it is.
std::string escaped_roff(std::string_view text) {
  constexpr std::array<std::pair<char, const char*>, 5> kSpecial{
      {{'\\', "\\e"}, {'-', "\\-"}, {'^', "\\(ha"}, {'~', "\\(ti"}, {'`', "\\(ga"}}};
  std::string result;
  if (text.starts_with(".") || text.starts_with("'")) result = "\\&";  // it would be a request
  for (const char c : text) {
    const auto* special =
        std::find_if(kSpecial.begin(), kSpecial.end(), [c](const auto& s) { return s.first == c; });
    if (special == kSpecial.end())
      result += c;
    else
      result += special->second;
  }
  return result;
}

/// Each line of `text` that is not empty as a paragraph.
std::string paragraphs(const std::string& text) {
  std::istringstream lines(text);
  std::string result;
  for (std::string line; std::getline(lines, line);)
    if (!line.empty()) result += fmt::format(".PP\n{}\n", escaped_roff(line));
  return result;
}

/// An indented paragraph under a tag, which is roff.
std::string tagged(const std::string& tag, const std::string& text) {
  return fmt::format(".TP\n{}\n{}\n", tag, escaped_roff(text));
}

std::string bold(std::string_view text) { return fmt::format("\\fB{}\\fR", escaped_roff(text)); }

std::string option_entry(const OptionText& option) {
  std::string tag = bold("--" + option.name);
  if (!option.short_name.empty()) tag = fmt::format("{}, {}", bold(option.short_name), tag);
  if (!option.value.empty()) tag += fmt::format(" \\fI{}\\fR", escaped_roff(option.value));
  std::string help = option.help;
  if (option.required) help += " The option is required.";
  if (!option.standard.empty()) help += fmt::format(" The default is {}.", option.standard);
  return tagged(tag, help);
}

/// The lines of a command's usage, each as a line of its own.
std::string usage(const Command& command) {
  std::istringstream lines(command.usage);
  std::string result;
  for (std::string line; std::getline(lines, line);)
    result +=
        fmt::format("{}{} {}\n", result.empty() ? "" : ".br\n", bold("aqhost"), escaped_roff(line));
  return result;
}

constexpr std::array<std::pair<const char*, const char*>, 6> kExitStatus{{
    {"0", "The command is done."},
    {"1", "The command failed. The last line on stderr says why."},
    {"2", "The command line is wrong."},
    {"75", "A signal stopped quantize or allocate. The same command continues the run."},
    {"128 + N", "Signal N stopped another command, or a second signal stopped quantize."},
    {"141", "The program that reads stdout has ended."},
}};

constexpr std::array<std::pair<const char*, const char*>, 5> kEnvironment{{
    {"AQ_PLUGIN_PATH",
     "Folders with plugins, separated by colons. They come after those of "
     "--plugin-dir and before the installed ones."},
    {"RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK",
     "What torchrun sets for each of several processes that make one export."},
    {"AQHOST_JOIN_TIMEOUT", "How many seconds a process waits for the others to start: 300."},
    {"AQHOST_RANK_TIMEOUT", "After how many seconds without an answer a process is lost: 30."},
    {"OMP_WAIT_POLICY, GOMP_SPINCOUNT",
     "How OpenMP's threads wait. Without either, aqhost lets them spin for a short time."},
}};

std::string command_section(const CommandText& text) {
  const Command& command = *text.command;
  std::string result = fmt::format(".SS {}\nThe command {}.\n.PP\n{}", bold(command.name),
                                   escaped_roff(command.summary), usage(command));
  result += paragraphs(command.details);
  for (const OptionText& option : text.options)
    if (!of_every_command(option)) result += option_entry(option);
  return result;
}

}  // namespace

std::string manual_page(const std::vector<CommandText>& commands) {
  std::string page = fmt::format(
      ".\\\" aqhost writes this page from the texts of its own help.\n"
      ".TH AQHOST 1 \"\" \"aqhost {}\" \"User Commands\"\n.ad l\n.nh\n"
      ".SH NAME\naqhost \\- quantizes Mixture\\-of\\-Experts language models\n.SH SYNOPSIS\n",
      kVersion);
  for (const CommandText& text : commands)
    page += (&text == &commands.front() ? "" : ".br\n") + usage(*text.command);
  page += ".SH DESCRIPTION\n" +
          escaped_roff(
              "aqhost reads a checkpoint in the Hugging Face layout one layer at a time, "
              "calibrates on a text, quantizes the weights by GPTQ or rounds them to nearest, "
              "and writes a checkpoint that serving engines load. Model families and number "
              "formats are plugins. Without the name of a command, the command is quantize.") +
          "\n.SH COMMANDS\n";
  for (const CommandText& text : commands) page += command_section(text);
  page += ".SH OPTIONS OF EVERY COMMAND\n";
  for (const OptionText& option : commands.front().options)
    if (of_every_command(option)) page += option_entry(option);
  page += ".SH EXIT STATUS\n";
  for (const auto& [status, text] : kExitStatus) page += tagged(bold(status), text);
  page += ".SH ENVIRONMENT\n";
  for (const auto& [name, text] : kEnvironment) page += tagged(bold(name), text);
  return page;
}

}  // namespace aqhost
