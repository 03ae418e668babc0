#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/file.h"

namespace aqhost {

/// The SHA-256 of a file as 64 hexadecimal digits. An Error names the path.
std::string sha256_of(const std::filesystem::path& path);
/// The same for the first `size` bytes of an open file; throws an Error if the file has fewer
/// bytes.
std::string sha256_of(const InputFile& file, int64_t size);
/// The same for bytes in memory.
std::string sha256_of(std::span<const std::byte> bytes);
inline std::string sha256_of_text(std::string_view text) {
  return sha256_of(std::as_bytes(std::span(text)));
}

}  // namespace aqhost
