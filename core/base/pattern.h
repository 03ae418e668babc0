#pragma once

#include <regex>
#include <string>
#include <string_view>

namespace aqhost {

/// Whether `text` matches a glob: `*` stands for any number of characters, dots included, and `?`
/// for one.
bool glob_match(std::string_view pattern, std::string_view text);

/// Compiles a regular expression (ECMAScript) from a recipe or a config.json. Throws an Error that
/// begins with `where` if it is invalid or longer than 1000 characters. Back-references are not
/// allowed, so that matching takes polynomial time for every expression.
std::regex compile_regex(const std::string& expression, const std::string& where);

}  // namespace aqhost
