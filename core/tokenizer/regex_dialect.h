#pragma once

#include <string>
#include <string_view>

namespace aqhost {

/// Rewrites a pattern from Oniguruma's Ruby dialect into PCRE2's (UTF, UCP, MULTILINE), where the
/// two agree on spelling but not on meaning: \s \w \h \v \b, scripts, {n,m}+. Constructs with no
/// sure counterpart are an Error that begins with `where`.
/// Specification: Oniguruma doc/RE (syntax ONIG_SYNTAX_RUBY), pcre2pattern(3).
std::string to_pcre2(std::string_view pattern, const std::string& where);

}  // namespace aqhost
