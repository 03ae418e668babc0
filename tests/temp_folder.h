#pragma once

#include <stdlib.h>  // mkdtemp is POSIX, <cstdlib> need not have it

#include <filesystem>
#include <string>

#include "base/error.h"

namespace aqhost {

/// An empty folder of its own that is gone, with all in it, when this ends.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "aqhost-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) fail("{}: no folder could be made", name);
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace aqhost
