#pragma once

#include <string>
#include <string_view>

namespace aqhost {

/// Translates a pattern from Oniguruma's Ruby dialect into PCRE2's (with UTF, UCP and MULTILINE),
/// where the two use the same spelling with different meanings: \s \w \h \v \b, scripts,
/// {n,m}+. A construct without a certain counterpart is an Error that begins with `where`.
/// Specification: Oniguruma doc/RE (syntax ONIG_SYNTAX_RUBY), pcre2pattern(3).
std::string to_pcre2(std::string_view pattern, const std::string& where);

}  // namespace aqhost
