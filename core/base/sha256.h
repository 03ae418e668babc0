#pragma once

#include <filesystem>
#include <string>

namespace aqhost {

/// SHA-256 of a file in 64 hexadecimal digits; Error names the path.
std::string sha256_of(const std::filesystem::path& path);

}  // namespace aqhost
