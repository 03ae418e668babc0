#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace aqhost {

using Json = nlohmann::json;

/// Parses `text`. Throws an Error that begins with `where` (a file name) if the text is not JSON,
/// if an object has the same key twice, or if values nest deeper than 64 levels.
Json parse_json(std::string_view text, const std::string& where);

/// Parses a file, which must exist and have at most 1 GiB.
Json read_json(const std::filesystem::path& path);

/// The text of a JSON value, for people and files: on one line, or indented by `indent` spaces per
/// level. Bytes that are not UTF-8 (in a file name, or in a plugin's text) are replaced by U+FFFD,
/// where dump() would throw.
template <typename AnyJson>
std::string to_text(const AnyJson& json, int indent = -1) {
  return json.dump(indent, ' ', false, AnyJson::error_handler_t::replace);
}

}  // namespace aqhost
