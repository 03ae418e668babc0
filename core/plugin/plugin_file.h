#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <utility>

namespace aqhost {

/// A plugin's file, opened once. The opened file is what is checked, hashed and loaded, even if its
/// name leads to another file meanwhile. Not copied.
class PluginFile {
 public:
  /// Opens `path`. Throws an Error, a sentence about the file, if it is not a regular file that can
  /// be read. Unless `trust` is set, also throws an Error if anyone except root and the user of
  /// this process could change what `path` leads to. The rule is that of ssh for keys: root or that
  /// user must own the file, every folder and every symbolic link on the way to it, and the folders
  /// that contain those links; neither group nor others may write to the file, or to a folder that
  /// is not sticky.
  PluginFile(const std::filesystem::path& path, bool trust);
  /// Closes the file, unless keep_open() was called.
  ~PluginFile();
  PluginFile(const PluginFile&) = delete;
  PluginFile& operator=(const PluginFile&) = delete;

  const std::string& path() const { return path_; }  // as the caller gave it
  /// A path that leads to the opened file and to no other, such as "/proc/self/fd/7".
  std::string open_path() const;
  /// The device and inode, which identify the file.
  std::pair<dev_t, ino_t> identity() const;
  /// The SHA-256 of the opened file as 64 hexadecimal digits.
  std::string sha256() const;

  /// Leaves the file open until the process ends. The dynamic linker still knows a library by
  /// open_path(), which must not lead to another file later.
  void keep_open() { kept_ = true; }

 private:
  std::string path_;
  int descriptor_ = -1;
  bool kept_ = false;
};

}  // namespace aqhost
