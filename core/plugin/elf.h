#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
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

/// The first fields of aq_entry.
struct EntryHead {
  uint32_t struct_size = 0;
  uint16_t abi_major = 0, abi_minor = 0;
};

/// What aq_plugin_entry begins with, read from the file: nothing of the plugin runs. nullopt if the
/// library exports none; Error as of read_dynamic(), or if the entry is not constant data.
std::optional<EntryHead> read_entry_head(const std::filesystem::path& file);

}  // namespace aqhost
