#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/file.h"

namespace aqhost {

/// SHA-256 of a file in 64 hexadecimal digits; Error names the path.
std::string sha256_of(const std::filesystem::path& path);
/// The same of the first `size` bytes of an open file; Error if it has fewer.
std::string sha256_of(const InputFile& file, int64_t size);
/// The same of bytes in memory.
std::string sha256_of(std::span<const std::byte> bytes);

}  // namespace aqhost
