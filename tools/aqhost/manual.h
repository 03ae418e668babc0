#pragma once

#include <string>
#include <vector>

#include "command.h"

namespace aqhost {

/// A command with its options.
struct CommandText {
  const Command* command;
  std::vector<OptionText> options;
  std::string bare_name;  // see OptionTable::bare_name()
};

// Each function takes all commands, the default command first, of which each has --log-level,
// --help and --version. The same commands give the same text.

/// The manual page aqhost(1), for man.
std::string manual_page(const std::vector<CommandText>& commands);
/// The completion of bash: a file that bash reads by `source`, or that lies in a folder
/// bash-completion/completions under the name aqhost.
std::string bash_completion(const std::vector<CommandText>& commands);
/// The completion of zsh: a file of the name _aqhost for a folder of zsh's fpath.
std::string zsh_completion(const std::vector<CommandText>& commands);

}  // namespace aqhost
