#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace aqhost {

/// Returns the content of a file of at most 1 GiB. An Error names the path.
std::string read_file(const std::filesystem::path& path);

/// Writes a temporary file beside `path`, flushes it, and renames it. So readers see either the old
/// file or the complete new one.
void write_file(const std::filesystem::path& path, std::string_view content);

/// A regular file that is open for reading while this object lives. The file is not mapped into
/// memory: if another program truncates it, reading fails with an Error instead of SIGBUS.
/// Thread-safe.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  int64_t size() const { return size_; }  // the size when it was opened
  const std::filesystem::path& path() const { return path_; }

  /// Reads out.size() bytes from `offset` on. If the file cannot be read or is too short, throws an
  /// Error that begins with the path, `what` and the offset.
  void read(int64_t offset, std::span<std::byte> out, std::string_view what = "") const;

  /// Throws an Error that begins with the path if the file was written to since it was opened, or
  /// if another file is now at its path. A file that was only deleted is no Error, because its
  /// content was read unchanged.
  void check_unchanged() const;

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  int64_t size_ = 0;
  std::array<int64_t, 4> identity_{};  // device, inode, and time when the content last changed
};

/// The beginning of a Git LFS pointer, which stands in place of a file until the file is fetched.
inline constexpr std::string_view kLfsPointer = "version https://git-lfs";

/// Recognises files that a failed or unfinished download leaves in place of a checkpoint's file.
/// `start` is the beginning of the file, or all of it. Returns what the file is ("a Git LFS
/// pointer: fetch the file itself with git lfs pull"), or "" if it is nothing of the kind.
std::string_view misplaced_file(std::string_view start);

/// Copies the content of a regular file to a new file and flushes that. An Error names the file
/// that cannot be read or written.
void copy_file(const std::filesystem::path& from, const std::filesystem::path& to);

/// Flushes the creations, renames and removals in a folder, where its file system supports this.
/// Throws an Error if that fails.
void flush_folder(const std::filesystem::path& folder);

/// The number of bytes that are free for this user on the folder's file system; negative if the
/// file system does not report it.
int64_t free_bytes(const std::filesystem::path& folder);

/// Reserves room on the disk for the first `bytes` bytes of a file. Returns 0 or an error number.
/// Throws Interrupted if a signal arrives meanwhile and asks the program to end.
int reserve_room(int fd, int64_t bytes);

/// The content of a folder, sorted by name. An Error names the folder if it cannot be read.
std::vector<std::filesystem::directory_entry> list_folder(const std::filesystem::path& folder);

}  // namespace aqhost
