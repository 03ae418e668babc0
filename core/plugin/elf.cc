#include "plugin/elf.h"

#include <elf.h>

#include <array>
#include <cstring>
#include <span>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace {

class ElfFile {
 public:
  explicit ElfFile(const std::filesystem::path& path) : file_(read_file(path)) {
    const auto ident = at<std::array<unsigned char, EI_NIDENT>>(0);
    if (std::memcmp(ident.data(), ELFMAG, SELFMAG) != 0 || ident[EI_CLASS] != ELFCLASS64 ||
        ident[EI_DATA] != ELFDATA2LSB)
      fail("it is no 64-bit ELF shared library");
    const auto header = at<Elf64_Ehdr>(0);
    if (header.e_type != ET_DYN) fail("it is no shared library");
    for (uint16_t i = 0; i < header.e_shnum; i++)
      sections_.push_back(at<Elf64_Shdr>(header.e_shoff + uint64_t{i} * sizeof(Elf64_Shdr)));
    for (uint16_t i = 0; i < header.e_phnum; i++)
      segments_.push_back(at<Elf64_Phdr>(header.e_phoff + uint64_t{i} * sizeof(Elf64_Phdr)));
  }

  DynamicInfo read() const {
    DynamicInfo info;
    each_exported(
        [&](const std::string& name, const Elf64_Sym&) { info.exported.push_back(name); });
    for (const Elf64_Shdr& section : sections_)
      if (section.sh_type == SHT_DYNAMIC)
        each<Elf64_Dyn>(section, [&](const Elf64_Dyn& entry) {
          if (entry.d_tag == DT_NEEDED) info.needed.push_back(text(section, entry.d_un.d_val));
        });
    return info;
  }

  std::optional<EntryHead> read_entry_head() const {
    std::optional<EntryHead> head;
    each_exported([&](const std::string& name, const Elf64_Sym& symbol) {
      if (name != "aq_plugin_entry") return;
      head = at<EntryHead>(offset_of(symbol.st_value));
      if (head->struct_size == 0) not_constant();  // filled in when the library is loaded
    });
    return head;
  }

 private:
  template <typename T>
  T at(uint64_t offset) const {
    const auto bytes = std::as_bytes(std::span(file_));
    if (offset > bytes.size() || sizeof(T) > bytes.size() - offset) fail("it ends too early");
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
  }

  /// Calls body(name, symbol) for each exported symbol.
  template <typename Body>
  void each_exported(Body body) const {
    for (const Elf64_Shdr& section : sections_) {
      if (section.sh_type != SHT_DYNSYM) continue;
      each<Elf64_Sym>(section, [&](const Elf64_Sym& symbol) {
        const auto visibility = ELF64_ST_VISIBILITY(symbol.st_other);
        if (symbol.st_shndx != SHN_UNDEF && ELF64_ST_BIND(symbol.st_info) != STB_LOCAL &&
            (visibility == STV_DEFAULT || visibility == STV_PROTECTED))
          body(text(section, symbol.st_name), symbol);
      });
    }
  }

  /// The offset in the file of what is loaded to `address`.
  uint64_t offset_of(uint64_t address) const {
    for (const Elf64_Phdr& segment : segments_)
      if (segment.p_type == PT_LOAD && address >= segment.p_vaddr &&
          address - segment.p_vaddr < segment.p_filesz)
        return segment.p_offset + (address - segment.p_vaddr);
    not_constant();
  }

  [[noreturn]] static void not_constant() {
    fail("its aq_plugin_entry is not constant data, so its version cannot be read before it runs");
  }

  template <typename T, typename Body>
  void each(const Elf64_Shdr& section, Body body) const {
    for (uint64_t offset = 0; offset + sizeof(T) <= section.sh_size; offset += sizeof(T))
      body(at<T>(section.sh_offset + offset));
  }

  /// The string at `offset` of the string table that belongs to `section`.
  std::string text(const Elf64_Shdr& section, uint64_t offset) const {
    if (section.sh_link >= sections_.size()) fail("it has no string table");
    std::string text;
    for (uint64_t i = sections_[section.sh_link].sh_offset + offset;; i++) {
      const char c = at<char>(i);
      if (c == '\0') return text;
      text += c;
    }
  }

  std::string file_;
  std::vector<Elf64_Shdr> sections_;
  std::vector<Elf64_Phdr> segments_;
};

}  // namespace

DynamicInfo read_dynamic(const std::filesystem::path& file) { return ElfFile(file).read(); }

std::optional<EntryHead> read_entry_head(const std::filesystem::path& file) {
  return ElfFile(file).read_entry_head();
}

}  // namespace aqhost
