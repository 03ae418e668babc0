#include "base/pattern.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"

namespace aqhost {
namespace {

constexpr std::size_t kMaxCharacters = 1000;  // std::regex compiles recursively
constexpr int kMaxDigits = 9;                 // std::regex lets longer numbers overflow

bool has_long_number(const std::string& expression) {
  int digits = 0;
  return std::any_of(expression.begin(), expression.end(), [&](unsigned char c) {
    digits = std::isdigit(c) != 0 ? digits + 1 : 0;
    return digits > kMaxDigits;
  });
}

}  // namespace

bool glob_match(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      p++;
      t++;
    } else if (star != std::string_view::npos) {  // the last star matches one more character
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

std::regex compile_regex(const std::string& expression, const std::string& where) {
  if (expression.size() > kMaxCharacters)
    fail("{}: a regular expression of {} characters, expected at most {}", where, expression.size(),
         kMaxCharacters);
  if (has_long_number(expression))
    fail("{}: \"{}\" has a number of more than {} digits", where, expression, kMaxDigits);
  try {
    return std::regex(expression, std::regex::ECMAScript | std::regex_constants::__polynomial);
  } catch (const std::regex_error& e) {
    fail("{}: \"{}\" is no valid regular expression: {}", where, expression, e.what());
  }
}

}  // namespace aqhost
