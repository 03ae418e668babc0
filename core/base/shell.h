#pragma once

#include <string>

namespace aqhost {

/// An argument as a shell takes it: in single quotes, unless it needs none.
std::string shell_quoted(const std::string& argument);

}  // namespace aqhost
