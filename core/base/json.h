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

}  // namespace aqhost
