#include "base/shell.h"

#include <algorithm>
#include <string_view>

namespace aqhost {

std::string shell_quoted(const std::string& argument) {
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("_./=:,+-@%").find(c) != std::string_view::npos;
  };
  if (!argument.empty() && std::all_of(argument.begin(), argument.end(), is_plain)) return argument;
  std::string result = "'";
  for (const char c : argument)
    if (c == '\'')
      result += "'\\''";
    else
      result += c;
  return result + "'";
}

}  // namespace aqhost
