#pragma once

#include <string>

#include "base/json.h"

namespace aqhost {

/// Parses a YAML document as JSON, for a Field to read. A scalar without quotes is a number, true
/// or false, or null, if it looks like one, and otherwise a string. Throws an Error that names the
/// file and the line if the text is not YAML, or if a map has a key twice. For files of our own:
/// nothing limits how deep values nest.
Json parse_yaml(const std::string& text, const std::string& file);

}  // namespace aqhost
