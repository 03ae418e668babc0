#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace aqhost {

using Json = nlohmann::json;

/// Parses `text`; `where` (a file name) begins the message of the Error thrown when it is no JSON,
/// repeats a key in one object, or nests deeper than 64 levels.
Json parse_json(std::string_view text, const std::string& where);

/// parse_json() of a file, which must exist and be at most 1 GiB.
Json read_json(const std::filesystem::path& path);

/// The text of a JSON value for people and files, in one line or with that many spaces a level.
/// What is no UTF-8 (a file's name, what a plugin says) is replaced by U+FFFD; dump() would throw.
template <typename AnyJson>
std::string to_text(const AnyJson& json, int indent = -1) {
  return json.dump(indent, ' ', false, AnyJson::error_handler_t::replace);
}

}  // namespace aqhost
