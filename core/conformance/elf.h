#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace aqhost {

/// What the dynamic linker sees of a 64-bit ELF shared library.
struct DynamicInfo {
  std::vector<std::string> exported;  // symbols it defines for others
  std::vector<std::string> needed;    // libraries it asks for
};

/// Error if `file` is no such library, or is damaged. See elf(5).
DynamicInfo read_dynamic(const std::filesystem::path& file);

}  // namespace aqhost
