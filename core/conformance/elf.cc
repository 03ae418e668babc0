#include "conformance/elf.h"

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
  explicit ElfFile(const std::filesystem::path& path) : file_(path) {
    const auto ident = at<std::array<unsigned char, EI_NIDENT>>(0);
    if (std::memcmp(ident.data(), ELFMAG, SELFMAG) != 0 || ident[EI_CLASS] != ELFCLASS64)
      fail("it is no 64-bit ELF shared library");
    const auto header = at<Elf64_Ehdr>(0);
    if (header.e_type != ET_DYN) fail("it is no shared library");
    for (uint16_t i = 0; i < header.e_shnum; i++)
      sections_.push_back(at<Elf64_Shdr>(header.e_shoff + uint64_t{i} * sizeof(Elf64_Shdr)));
  }

  DynamicInfo read() const {
    DynamicInfo info;
    for (const Elf64_Shdr& section : sections_) {
      if (section.sh_type == SHT_DYNSYM)
        each<Elf64_Sym>(section, [&](const Elf64_Sym& symbol) {
          const auto visibility = ELF64_ST_VISIBILITY(symbol.st_other);
          if (symbol.st_shndx != SHN_UNDEF && ELF64_ST_BIND(symbol.st_info) != STB_LOCAL &&
              (visibility == STV_DEFAULT || visibility == STV_PROTECTED))
            info.exported.push_back(text(section, symbol.st_name));
        });
      if (section.sh_type == SHT_DYNAMIC)
        each<Elf64_Dyn>(section, [&](const Elf64_Dyn& entry) {
          if (entry.d_tag == DT_NEEDED) info.needed.push_back(text(section, entry.d_un.d_val));
        });
    }
    return info;
  }

 private:
  template <typename T>
  T at(uint64_t offset) const {
    const auto bytes = file_.bytes();
    if (offset > bytes.size() || sizeof(T) > bytes.size() - offset) fail("it ends too early");
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
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

  MappedFile file_;
  std::vector<Elf64_Shdr> sections_;
};

}  // namespace

DynamicInfo read_dynamic(const std::filesystem::path& file) { return ElfFile(file).read(); }

}  // namespace aqhost
