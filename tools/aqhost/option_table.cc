#include "option_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "base/nearest.h"
#include "base/progress.h"

namespace aqhost {
namespace {

/// The width of help texts in columns.
unsigned help_width() {
  const std::size_t terminal = terminal_width(STDOUT_FILENO);
  return terminal == 0 ? 80 : static_cast<unsigned>(std::clamp<std::size_t>(terminal, 60, 100));
}

void check_not_empty(const char* name, const std::string& text) {
  if (text.empty()) throw UsageError(fmt::format("--{} is empty", name));
}

}  // namespace

OptionTable::OptionTable(const std::string& command)
    : command_("aqhost " + command),
      known_("Options of " + command_, help_width(), help_width() - 28) {}

po::typed_value<std::string>* OptionTable::text(const char* name, const char* value,
                                                std::string& field, const char* help) {
  auto* semantic = po::value(&field)->value_name(value);
  semantic->notifier([name](const std::string& text) { check_not_empty(name, text); });
  if (!field.empty()) semantic->default_value(field);
  known_.add_options()(name, semantic, help);
  return semantic;
}

po::typed_value<std::string>* OptionTable::model(const char* name, std::string& field,
                                                 ModelPart part, const char* help) {
  models_.emplace_back(&field, part);
  return text(name, "MODEL", field, help);
}

void OptionTable::choice(const char* name, const std::vector<std::string>& words,
                         std::string& field, const char* help) {
  suggest(name, words);
  text(name, "WORD", field, help)->notifier([name, words](const std::string& text) {
    if (std::find(words.begin(), words.end(), text) != words.end()) return;
    throw UsageError(fmt::format("--{} \"{}\": expected {}{}{}", name, text,
                                 fmt::join(words.begin(), words.end() - 1, ", "),
                                 words.size() > 1 ? " or " : "", words.back()));
  });
}

void OptionTable::integer(const char* name, const char* value, int64_t& field, int64_t minimum,
                          int64_t maximum, const char* help) {
  auto* semantic = po::value(&field)->value_name(value)->default_value(field);
  semantic->notifier([=](int64_t given) {
    if (given < minimum || given > maximum)
      throw UsageError(fmt::format("--{} {}: expected {} to {}", name, given, minimum, maximum));
  });
  known_.add_options()(name, semantic, help);
}

void OptionTable::list(const char* name, const char* value, std::vector<std::string>& field,
                       const char* help) {
  auto* semantic = po::value(&field)->value_name(value)->composing();
  semantic->notifier([name](const std::vector<std::string>& texts) {
    for (const std::string& text : texts) check_not_empty(name, text);
  });
  known_.add_options()(name, semantic, help);
}

void OptionTable::flag(const char* name, bool& field, const char* help) {
  known_.add_options()(name, po::bool_switch(&field), help);
}

/// Says which option replaces an unknown one, or else which has the most similar name.
std::string OptionTable::explain_unknown(const std::string& option) const {
  for (const auto& [old_name, name] : renamed_)
    if (option == "--" + old_name) return fmt::format("{} is now called --{}", option, name);
  std::vector<std::string> names;
  for (const auto& known : known_.options()) names.push_back("--" + known->long_name());
  const std::string nearest = nearest_name(option, names);
  return fmt::format("unknown option {}", option) +
         (nearest.empty() ? "" : fmt::format(", did you mean {}?", nearest));
}

void OptionTable::parse(const std::vector<std::string>& arguments) try {
  arguments_ = arguments;
  const auto style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
  po::command_line_parser parser(arguments);
  po::store(parser.options(known_).positional(bare_).style(style).run(), values_);
} catch (const po::too_many_positional_options_error&) {
  throw UsageError(command_ +
                   " takes options only; another command comes before them: aqhost COMMAND "
                   "[options]");
} catch (const po::unknown_option& e) {
  throw UsageError(explain_unknown(e.get_option_name()));
} catch (const po::invalid_option_value& e) {
  throw UsageError(fmt::format("{}: a whole number was expected", e.what()));
} catch (const po::error& e) {
  throw UsageError(e.what());
}

std::set<std::string> OptionTable::given() const {
  std::set<std::string> names;
  for (const auto& [name, value] : values_)
    if (!value.defaulted()) names.insert(name);
  return names;
}

void OptionTable::apply() {
  try {
    po::notify(values_);
  } catch (const po::required_option& e) {
    throw UsageError(fmt::format("{} is missing", e.get_option_name()));
  }
  for (const auto& [field, part] : models_)
    if (!field->empty()) *field = find_model(*field, part).string();
}

std::string OptionTable::help() const {
  std::ostringstream text;
  text << known_;
  return text.str();
}

std::vector<OptionText> OptionTable::describe() const {
  std::vector<OptionText> result;
  for (const auto& known : known_.options()) {
    OptionText option;
    option.name = known->long_name();
    option.help = known->description();
    const std::string shortest =
        known->canonical_display_name(po::command_line_style::allow_dash_for_short);
    if (shortest.starts_with("-")) option.short_name = shortest;
    const auto semantic = known->semantic();
    if (semantic->max_tokens() > 0) {
      option.value = semantic->name();  // "N", or "N (=512)" with a default value
      if (const auto begin = option.value.find(" (="); begin != std::string::npos) {
        option.standard = option.value.substr(begin + 3, option.value.size() - begin - 4);
        option.value.resize(begin);
      }
    }
    option.required = semantic->is_required();
    option.repeated = semantic->is_composing();
    if (const auto words = words_.find(option.name); words != words_.end())
      option.words = words->second;
    result.push_back(std::move(option));
  }
  return result;
}

std::string OptionTable::bare_name() const {
  return bare_.max_total_count() > 0 ? bare_.name_for_position(0) : "";
}

std::string wrap(const std::string& text) {
  std::istringstream lines(text);
  std::string result, line, word;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    for (std::size_t column = 0; words >> word; column += word.size()) {
      if (column > 0) {
        const bool fits = column + 1 + word.size() <= help_width();
        result += fits ? ' ' : '\n';
        column = fits ? column + 1 : 0;
      }
      result += word;
    }
    result += '\n';
  }
  return result;
}

}  // namespace aqhost
