#pragma once

#include <regex>
#include <string>
#include <string_view>

namespace aqhost {

/// Whether `text` matches a glob: `*` any characters (dots too), `?` one.
bool glob_match(std::string_view pattern, std::string_view text);

/// A regular expression (ECMAScript) out of a recipe or a config.json. Error, beginning with
/// `where`, if it is none or longer than 1000 characters. No back-references: matching takes a time
/// polynomial in the text, whatever the expression.
std::regex compile_regex(const std::string& expression, const std::string& where);

}  // namespace aqhost
