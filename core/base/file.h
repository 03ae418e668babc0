#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace aqhost {

/// The whole file (at most 1 GiB); Error names the path.
std::string read_file(const std::filesystem::path& path);

/// Writes beside `path`, flushes, and renames: readers see the old file or the whole new one.
void write_file(const std::filesystem::path& path, std::string_view content);

/// A file mapped read-only for as long as this lives. Empty files map to an empty span.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Takes the whole pages of a part of bytes() out of this process's memory; they are read again
  /// when they are used again. Any thread, also one that reads them.
  static void forget(std::span<const std::byte> part);
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A new directory beside `target` that becomes `target` on commit() and is removed otherwise, so
/// that a failed or interrupted run leaves nothing half-written.
class StagedDirectory {
 public:
  /// Error if `target` exists (unless `overwrite`), or its parent cannot be written.
  StagedDirectory(std::filesystem::path target, bool overwrite);
  ~StagedDirectory();
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  const std::filesystem::path& path() const { return staging_; }
  void commit();

 private:
  std::filesystem::path target_, staging_;
  bool overwrite_, committed_ = false;
};

}  // namespace aqhost
