#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <utility>

namespace aqhost {

/// A plugin's file, opened once. What is checked, hashed and loaded is this one file, whatever
/// happens to its name meanwhile. Not copied.
class PluginFile {
 public:
  /// Opens `path`; Error, a sentence about the file, if it is no regular file that can be read.
  /// Unless `trust`: Error if anyone but root and the user of this process may change what `path`
  /// leads to. As for ssh's keys, root or that user must own the file, every folder on the way to
  /// it and every symbolic link on that way, with the folders in which such links lie; and neither
  /// group nor others may write to the file, or to a folder that is not sticky.
  PluginFile(const std::filesystem::path& path, bool trust);
  /// Closes the file, unless keep_open() was called.
  ~PluginFile();
  PluginFile(const PluginFile&) = delete;
  PluginFile& operator=(const PluginFile&) = delete;

  const std::string& path() const { return path_; }  // as it was given
  /// A path that leads to the opened file and to no other: "/proc/self/fd/7".
  std::string open_path() const;
  /// Device and inode, which no other file has.
  std::pair<dev_t, ino_t> identity() const;
  /// SHA-256 of the opened file in 64 hexadecimal digits.
  std::string sha256() const;

  /// Leaves the file open until the process ends: the dynamic linker still knows a library by
  /// open_path(), which must not come to name another file.
  void keep_open() { kept_ = true; }

 private:
  std::string path_;
  int descriptor_ = -1;
  bool kept_ = false;
};

}  // namespace aqhost
