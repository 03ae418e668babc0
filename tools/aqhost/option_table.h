#pragma once

#include <boost/program_options.hpp>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/model_folder.h"

namespace aqhost {
namespace po = boost::program_options;

/// What a manual page and completion say of one option.
struct OptionText {
  std::string name, short_name;    // "help" and "-h"; the latter may be empty
  std::string value;               // what stands for its value; empty: it takes none
  std::string standard;            // its default value; empty: it has none
  std::string help;                // sentences
  std::vector<std::string> words;  // values that completion offers, see OptionTable::suggest()
  bool required = false, repeated = false;
};

/// The options of one command. Each is bound to a field, which must outlive the table and whose
/// value beforehand is the default. Whatever is wrong with a command line is a UsageError that
/// names the option, what was given and what was expected. In help, `value` stands for a value.
class OptionTable {
 public:
  explicit OptionTable(const std::string& command);

  /// An option that takes any text that is not empty.
  po::typed_value<std::string>* text(const char* name, const char* value, std::string& field,
                                     const char* help);
  /// A text() without which the command cannot run.
  void required_text(const char* name, const char* value, std::string& field, const char* help) {
    text(name, value, field, help)->required();
  }
  /// An option that takes a model: a folder, or the id of a model in the cache of the Hugging Face
  /// Hub. apply() puts the folder in which `part` is into the field (see find_model()).
  po::typed_value<std::string>* model(const char* name, std::string& field, ModelPart part,
                                      const char* help);
  /// An option that takes one of `words`.
  void choice(const char* name, const std::vector<std::string>& words, std::string& field,
              const char* help);
  /// An option that takes an integer from `minimum` to `maximum`.
  void integer(const char* name, const char* value, int64_t& field, int64_t minimum,
               int64_t maximum, const char* help);
  /// An option that may be given several times.
  void list(const char* name, const char* value, std::vector<std::string>& field, const char* help);
  /// An option without a value that sets `field` to true. "help,h" is --help, or -h for short.
  void flag(const char* name, bool& field, const char* help);
  /// Arguments without an option's name are values of the option `name`.
  void take_bare_arguments(const char* name) { bare_.add(name, -1); }
  /// Makes completion offer these values of the option `name`. Those that begin with "*." are
  /// patterns of the names of files. Other values stay valid.
  void suggest(const char* name, const std::vector<std::string>& words) { words_[name] = words; }
  /// Tells a user of the former option `old_name` its name of today.
  void renamed(const char* old_name, const char* name) { renamed_[old_name] = name; }

  /// Reads the command line. No field is changed before apply().
  void parse(const std::vector<std::string>& arguments);
  /// The command line that parse() has read.
  const std::vector<std::string>& arguments() const { return arguments_; }
  /// The names of the options on the command line.
  std::set<std::string> given() const;
  /// Checks the values and sets the fields. Throws an Error if a model() cannot be found.
  void apply();

  /// The table as text for people, see wrap().
  std::string help() const;
  /// The options in the order in which they were added.
  std::vector<OptionText> describe() const;
  /// The name of the option whose values are arguments without an option's name; "" if there is
  /// none.
  std::string bare_name() const;

 private:
  std::string explain_unknown(const std::string& option) const;

  const std::string command_;
  std::vector<std::string> arguments_;
  po::options_description known_;
  po::positional_options_description bare_;
  po::variables_map values_;
  std::map<std::string, std::string> renamed_;
  std::vector<std::pair<std::string*, ModelPart>> models_;  // the fields of model()
  std::map<std::string, std::vector<std::string>> words_;
};

/// `text`, each line of it broken at spaces to fit the terminal on stdout, to at most 100 columns;
/// to 80 if stdout is not a terminal.
std::string wrap(const std::string& text);

}  // namespace aqhost
