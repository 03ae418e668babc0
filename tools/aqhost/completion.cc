#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "manual.h"

namespace aqhost {
namespace {

/// What the values of an option are.
enum class Kind { kAny, kFolder, kFile, kPattern, kWord, kFamily };

Kind kind_of(const OptionText& option) {
  if (!option.words.empty())
    return option.words.front().starts_with("*.") ? Kind::kPattern : Kind::kWord;
  if (option.value == "DIR" || option.value == "MODEL") return Kind::kFolder;
  if (option.value == "FILE") return Kind::kFile;
  return option.value == "ID" ? Kind::kFamily : Kind::kAny;
}

const OptionText* find_option(const CommandText& text, const std::string& name) {
  const auto found = std::find_if(text.options.begin(), text.options.end(),
                                  [&](const OptionText& o) { return o.name == name; });
  return found == text.options.end() ? nullptr : &*found;
}

/// {"*.yaml", "*.json"} as "yaml|json".
std::string endings(const OptionText& option) {
  std::vector<std::string> result;
  for (const std::string& word : option.words) result.push_back(word.substr(2));
  return fmt::format("{}", fmt::join(result, "|"));
}

/// The command of bash that offers values of an option.
std::string bash_values(const OptionText& option) {
  switch (kind_of(option)) {
    case Kind::kAny:
      return ":";
    case Kind::kFolder:
      return "_aqhost_files -d";
    case Kind::kFile:
      return "_aqhost_files -f";
    case Kind::kPattern:
      return fmt::format("_aqhost_files -f -X '!*.@({})'", endings(option));
    case Kind::kWord:
      return fmt::format("_aqhost_words '{}'", fmt::join(option.words, " "));
    case Kind::kFamily:
      return "_aqhost_words \"auto $(_aqhost_families)\"";
  }
  return ":";
}

constexpr const char* kBashFunctions =
    R"(# Completion of aqhost for bash, which aqhost has written from its options.

# offers the words of a list that begin with what is typed
_aqhost_words() {
  mapfile -t COMPREPLY < <(compgen -W "$1" -- "$typed")
}

# offers folders, and what compgen finds with the given options
_aqhost_files() {
  local extglob
  extglob=$(shopt -p extglob)
  shopt -s extglob
  mapfile -t COMPREPLY < <({ compgen -d -- "$typed"; compgen "$@" -- "$typed"; } | sort -u)
  $extglob
  compopt -o filenames 2> /dev/null
}

# prints the ids of the model plugins
_aqhost_families() {
  aqhost plugins 2> /dev/null | while read -r id kind _; do
    [ "$kind" != model ] || echo "$id"
  done
}

)";

constexpr const char* kBashBegin =
    R"(  local typed=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} name=${COMP_WORDS[1]}
  # bash takes the sign in --option=value for a word
  if [ "$typed" = = ]; then
    typed=
  elif [ "$before" = = ]; then
    before=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  COMPREPLY=()
)";

std::string quoted_for_zsh(const std::string& text, const char* special) {
  std::string result;
  for (const char c : text) {
    if (c == '\'')
      result += "'\\''";
    else if (std::string_view(special).find(c) != std::string_view::npos)
      result += fmt::format("\\{}", c);
    else
      result += c;
  }
  return result;
}

/// ":VALUE:ACTION" of _arguments.
std::string zsh_values(const OptionText& option) {
  switch (kind_of(option)) {
    case Kind::kAny:
      return fmt::format(":{}: ", option.value);
    case Kind::kFolder:
      return fmt::format(":{}:_files -/", option.value);
    case Kind::kFile:
      return fmt::format(":{}:_files", option.value);
    case Kind::kPattern:
      return fmt::format(":{}:_files -g \"*.({})\"", option.value, endings(option));
    case Kind::kWord:
      return fmt::format(":{}:({})", option.value, fmt::join(option.words, " "));
    case Kind::kFamily:
      return fmt::format(":{}:_aqhost_families", option.value);
  }
  return "";
}

/// The specification of an option for _arguments. Of the help text, it has the first sentence.
std::string zsh_option(const OptionText& option) {
  const std::string help = quoted_for_zsh(option.help.substr(0, option.help.find(". ")), "[]:\\");
  std::string result = fmt::format("'{}--{}{}[{}]{}'", option.repeated ? "*" : "", option.name,
                                   option.value.empty() ? "" : "=", help,
                                   option.value.empty() ? "" : zsh_values(option));
  if (!option.short_name.empty()) result += fmt::format(" '{}[{}]'", option.short_name, help);
  return result;
}

}  // namespace

std::string bash_completion(const std::vector<CommandText>& commands) {
  std::vector<std::string> names;
  for (const CommandText& text : commands) names.emplace_back(text.command->name);
  std::string script = kBashFunctions;
  script += "_aqhost() {\n";
  script += kBashBegin;
  script += fmt::format(
      "  if [ \"$COMP_CWORD\" = 1 ] && [[ $typed != -* ]]; then\n    _aqhost_words '{}'\n    "
      "return\n"
      "  fi\n  [[ $name != -* ]] || name={}\n  case $name:$before in\n",
      fmt::join(names, " "), names.front());
  for (const CommandText& text : commands)
    for (const OptionText& option : text.options)
      if (!option.value.empty())
        script += fmt::format("    {}:--{}) {} ;;\n", text.command->name, option.name,
                              bash_values(option));
  script += "    *)\n      case $name:$typed in\n";
  for (const CommandText& text : commands) {
    std::string options;
    for (const OptionText& option : text.options) options += fmt::format(" --{}", option.name);
    script += fmt::format("        {}:-*) _aqhost_words '{}' ;;\n", text.command->name,
                          options.substr(1));
    if (const OptionText* bare = find_option(text, text.bare_name); bare != nullptr)
      script += fmt::format("        {}:*) {} ;;\n", text.command->name, bash_values(*bare));
  }
  return script + "      esac ;;\n  esac\n}\ncomplete -F _aqhost aqhost\n";
}

std::string zsh_completion(const std::vector<CommandText>& commands) {
  std::string script =
      "#compdef aqhost\n# Completion of aqhost for zsh, which aqhost has written from its "
      "options.\n\n"
      "_aqhost_families() {\n  local -a ids\n"
      "  ids=(auto ${(f)\"$(aqhost plugins 2> /dev/null | awk '$2 == \"model\" {print $1}')\"})\n"
      "  compadd -a ids\n}\n\n_aqhost() {\n  local -a names\n  names=(\n";
  for (const CommandText& text : commands)
    script += fmt::format("    '{}:{}'\n", text.command->name,
                          quoted_for_zsh(text.command->summary, ":\\"));
  script += fmt::format(
      "  )\n  if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n"
      "    _describe command names\n    return\n  fi\n  local name={}\n"
      "  if [[ $words[2] != -* ]]; then\n    name=$words[2]\n    shift words\n    (( CURRENT-- ))\n"
      "  fi\n  case $name in\n",
      commands.front().command->name);
  for (const CommandText& text : commands) {
    script += fmt::format("    {})\n      _arguments", text.command->name);
    for (const OptionText& option : text.options)
      script += fmt::format(" \\\n        {}", zsh_option(option));
    if (const OptionText* bare = find_option(text, text.bare_name); bare != nullptr)
      script += fmt::format(" \\\n        '*{}'", zsh_values(*bare));
    script += "\n      ;;\n";
  }
  return script + "  esac\n}\n\n_aqhost \"$@\"\n";
}

}  // namespace aqhost
