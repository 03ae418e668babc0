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

/// The whole file (at most 1 GiB); Error names the path.
std::string read_file(const std::filesystem::path& path);

/// Writes beside `path`, flushes, and renames: readers see the old file or the whole new one.
void write_file(const std::filesystem::path& path, std::string_view content);

/// A regular file, open for reading for as long as this lives. Nothing is mapped, so that a file
/// that another program truncates meanwhile is an Error and no SIGBUS. Any thread.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  int64_t size() const { return size_; }  // when it was opened
  const std::filesystem::path& path() const { return path_; }

  /// out.size() bytes from `offset` on. Error, beginning with the path, `what` and the offset, if
  /// the file cannot be read or ends before.
  void read(int64_t offset, std::span<std::byte> out, std::string_view what = "") const;

  /// Error, beginning with the path, if the file was written to since it was opened, or if another
  /// file is at its path now. One that was only deleted was read as it was, and is no Error.
  void check_unchanged() const;

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  int64_t size_ = 0;
  std::array<int64_t, 4> identity_{};  // device, inode, and time of the last change of its content
};

/// How a pointer of Git LFS begins, which stands in place of a file until it is fetched.
inline constexpr std::string_view kLfsPointer = "version https://git-lfs";

/// What a file is that begins with `start` (all of it, or enough to tell), where it is none of a
/// checkpoint's but something that a download leaves in place of one ("a Git LFS pointer: fetch the
/// file itself with git lfs pull"), or "".
std::string_view misplaced_file(std::string_view start);

/// Copies the content of a regular file to a new one, and flushes it. Error names the file that
/// cannot be read or written.
void copy_file(const std::filesystem::path& from, const std::filesystem::path& to);

/// Flushes what was created, renamed and removed in a folder, where its file system can. Error if
/// that fails.
void flush_folder(const std::filesystem::path& folder);

/// The bytes that are free to this user where a folder lies; negative if the file system does not
/// tell.
int64_t free_bytes(const std::filesystem::path& folder);

/// What is in a folder, sorted by name; Error names the folder if it cannot be read.
std::vector<std::filesystem::directory_entry> list_folder(const std::filesystem::path& folder);

}  // namespace aqhost
