#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace aqhost {

/// The part of a 64-bit ELF shared library that the dynamic linker reads.
struct DynamicInfo {
  std::vector<std::string> exported;  // symbols that it defines for others
  std::vector<std::string> needed;    // libraries that it depends on
};

/// Throws an Error if `file` is not such a library, or is damaged. See elf(5).
DynamicInfo read_dynamic(const std::filesystem::path& file);

/// The first fields of an aq_entry.
struct EntryHead {
  uint32_t struct_size = 0;
  uint16_t abi_major = 0, abi_minor = 0;
};

/// Reads the beginning of aq_plugin_entry from the file, without running any code of the plugin.
/// Returns nullopt if the library does not export it. Throws an Error as read_dynamic() does, or if
/// the entry is not constant data.
std::optional<EntryHead> read_entry_head(const std::filesystem::path& file);

}  // namespace aqhost
