#include "base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/interrupt.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr off_t kMaxTextFile = off_t{1} << 30;
// Opening a pipe does not wait for its writer, so that pipes can be refused.
constexpr int kForReading = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

[[noreturn]] void fail_by_errno(const fs::path& path) {
  fail("{}: {}", path.string(), std::strerror(errno));
}

class FileDescriptor {
 public:
  FileDescriptor(const fs::path& path, int flags) : fd_(::open(path.c_str(), flags, 0644)) {
    if (fd_ < 0) fail_by_errno(path);
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

struct stat regular_status(const FileDescriptor& file, const fs::path& path) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail_by_errno(path);
  if (!S_ISREG(status.st_mode)) fail("{}: not a regular file", path.string());
  return status;
}

off_t regular_size(const FileDescriptor& file, const fs::path& path) {
  return regular_status(file, path).st_size;
}

std::array<int64_t, 4> identity_of(const struct stat& status) {
  return {static_cast<int64_t>(status.st_dev), static_cast<int64_t>(status.st_ino),
          status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

void write_all(const FileDescriptor& file, std::string_view content, const fs::path& path) {
  while (!content.empty()) {
    const ssize_t n = ::write(file.get(), content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_by_errno(path);
    content.remove_prefix(static_cast<std::size_t>(n));
  }
}

/// Reads what is next in the file, up to the size of `buffer`; returns "" at the end of the file.
std::string_view read_some(const FileDescriptor& file, std::span<char> buffer,
                           const fs::path& path) {
  for (;;) {
    const ssize_t n = ::read(file.get(), buffer.data(), buffer.size());
    if (n >= 0) return {buffer.data(), static_cast<std::size_t>(n)};
    if (errno != EINTR) fail_by_errno(path);
  }
}

/// Removes a file in the destructor, unless it was finished.
class Unfinished {
 public:
  explicit Unfinished(fs::path path) : path_(std::move(path)) {}
  ~Unfinished() {
    if (!finished_) ::unlink(path_.c_str());
  }
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;
  void finish() { finished_ = true; }

 private:
  fs::path path_;
  bool finished_ = false;
};

}  // namespace

std::string read_file(const fs::path& path) {
  const FileDescriptor file(path, kForReading);
  const off_t size = regular_size(file, path);
  if (size > kMaxTextFile)
    fail("{}: {} bytes, expected a text of at most {}", path.string(), size, kMaxTextFile);
  std::string content(static_cast<std::size_t>(size), '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    const std::size_t n = read_some(file, std::span(content).subspan(done), path).size();
    if (n == 0) break;
    done += n;
  }
  content.resize(done);
  return content;
}

void write_file(const fs::path& path, std::string_view content) {
  const fs::path part = path.string() + ".part";
  const FileDescriptor file(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
  Unfinished unfinished(part);
  write_all(file, content, part);
  if (::fsync(file.get()) != 0) fail_by_errno(part);
  if (::rename(part.c_str(), path.c_str()) != 0) fail_by_errno(path);
  unfinished.finish();
}

InputFile::InputFile(const fs::path& path) : path_(path) {
  FileDescriptor file(path, kForReading);
  const struct stat status = regular_status(file, path);
  size_ = status.st_size;
  identity_ = identity_of(status);
  fd_ = file.release();
}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      identity_(other.identity_) {}

void InputFile::read(int64_t offset, std::span<std::byte> out, std::string_view what) const {
  const auto where = [&] {
    return fmt::format("{}: {}{}offset {}", path_.string(), what, what.empty() ? "" : ", ", offset);
  };
  while (!out.empty()) {
    const ssize_t n = ::pread(fd_, out.data(), out.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("{}: {}", where(), std::strerror(errno));
    if (n == 0)
      fail("{}: the file ends here, it had {} bytes when it was opened; has it been truncated?",
           where(), size_);
    out = out.subspan(static_cast<std::size_t>(n));
    offset += n;
  }
}

void InputFile::check_unchanged() const {
  struct stat open {
  }, named{};
  if (::fstat(fd_, &open) != 0) fail_by_errno(path_);
  const auto refuse = [this](const std::string& what) {
    fail(
        "{}: the file was changed while it was in use: {}; start again once no other program "
        "changes it",
        path_.string(), what);
  };
  if (open.st_size != size_)
    refuse(fmt::format("it had {} bytes and has {}", size_, static_cast<int64_t>(open.st_size)));
  if (identity_of(open) != identity_) refuse("another program wrote to it");
  const bool there = ::stat(path_.c_str(), &named) == 0;
  if (there && (named.st_dev != open.st_dev || named.st_ino != open.st_ino))
    refuse("another file took its place");
}

std::string_view misplaced_file(std::string_view start) {
  constexpr std::size_t kTold = 8;
  if (start.size() >= kTold && start.find_first_not_of('\0') == start.npos)
    return "filled with zero bytes, as an interrupted download or copy leaves it; download it "
           "again";
  if (start.starts_with(kLfsPointer))
    return "a Git LFS pointer, not the file itself, which git lfs pull fetches";
  const std::size_t text = start.find_first_not_of(" \t\r\n");
  if (text != start.npos && start[text] == '<')
    return "a web page (HTML or XML), not the file itself; download it again";
  if (start.starts_with("PK\x03\x04")) return "a ZIP archive, as PyTorch writes its files";
  if (start.starts_with("\x1f\x8b")) return "compressed by gzip; decompress it";
  if (start.starts_with("GGUF")) return "a GGUF file";
  return "";
}

void copy_file(const fs::path& from, const fs::path& to) {
  const FileDescriptor source(from, kForReading);
  regular_size(source, from);
  const FileDescriptor target(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC);
  Unfinished unfinished(to);
  std::string buffer(std::size_t{1} << 18, '\0');
  for (;;) {
    const std::string_view content = read_some(source, buffer, from);
    if (content.empty()) break;
    write_all(target, content, to);
  }
  if (::fsync(target.get()) != 0) fail_by_errno(to);
  unfinished.finish();
}

void flush_folder(const fs::path& folder) {
  const FileDescriptor file(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (::fsync(file.get()) == 0 || errno == EINVAL || errno == EROFS || errno == ENOTSUP) return;
  fail("{}: cannot be flushed: {}", folder.string(), std::strerror(errno));
}

int64_t free_bytes(const fs::path& folder) {
  struct statvfs disk {};
  if (::statvfs(folder.c_str(), &disk) != 0 || disk.f_blocks == 0) return -1;
  return static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
}

int reserve_room(int fd, int64_t bytes) {
  int error = 0;
  while ((error = ::posix_fallocate(fd, 0, bytes)) == EINTR) check_interrupt();
  return error;
}

std::vector<fs::directory_entry> list_folder(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::directory_entry> entries;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    entries.push_back(*it);
  if (error) fail("{}: {}", folder.string(), error.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace aqhost
