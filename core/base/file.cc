#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr off_t kMaxTextFile = off_t{1} << 30;

class FileDescriptor {
 public:
  FileDescriptor(const fs::path& path, int flags) : fd_(::open(path.c_str(), flags, 0644)) {
    if (fd_ < 0) fail("{}: {}", path.string(), std::strerror(errno));
  }
  ~FileDescriptor() { ::close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

off_t regular_size(const FileDescriptor& file, const fs::path& path) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail("{}: {}", path.string(), std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("{}: not a regular file", path.string());
  return status.st_size;
}

}  // namespace

std::string read_file(const fs::path& path) {
  const FileDescriptor file(path, O_RDONLY | O_CLOEXEC);
  const off_t size = regular_size(file, path);
  if (size > kMaxTextFile)
    fail("{}: {} bytes, expected a text of at most {}", path.string(), size, kMaxTextFile);
  std::string content(static_cast<std::size_t>(size), '\0');
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t n = ::read(file.get(), content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("{}: {}", path.string(), std::strerror(errno));
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  content.resize(done);
  return content;
}

void write_file(const fs::path& path, std::string_view content) {
  const fs::path part = path.string() + ".part";
  {
    const FileDescriptor file(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
    while (!content.empty()) {
      const ssize_t n = ::write(file.get(), content.data(), content.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("{}: {}", part.string(), std::strerror(errno));
      content.remove_prefix(static_cast<std::size_t>(n));
    }
    if (::fsync(file.get()) != 0) fail("{}: {}", part.string(), std::strerror(errno));
  }
  fs::rename(part, path);
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const FileDescriptor file(path, O_RDONLY | O_CLOEXEC);
  size_ = static_cast<std::size_t>(regular_size(file, path));
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) fail("{}: cannot map: {}", path.string(), std::strerror(errno));
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

void MappedFile::forget(std::span<const std::byte> part) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(part.data());
  const std::uintptr_t begin = (first + page - 1) / page * page;
  const std::uintptr_t end = (first + part.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

StagedDirectory::StagedDirectory(fs::path target, bool overwrite)
    : target_(std::move(target)), overwrite_(overwrite) {
  if (target_.filename().empty()) target_ = target_.parent_path();  // "out/"
  if (fs::exists(target_) && !overwrite_)
    fail("{}: already exists; choose another folder or pass --overwrite", target_.string());
  std::error_code error;
  if (target_.has_parent_path()) fs::create_directories(target_.parent_path(), error);
  bool made = false;
  for (int i = 1; !made && !error; i++) {  // past what a killed run left
    staging_ = target_.string() + ".part-" + std::to_string(i);
    made = fs::create_directory(staging_, error);
  }
  if (error) fail("{}: cannot be made: {}", target_.string(), error.message());
}

StagedDirectory::~StagedDirectory() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(staging_, ignored);
}

void StagedDirectory::commit() {
  const fs::path old = staging_.string() + ".old";  // until the new one stands
  std::error_code error;
  if (overwrite_ && fs::exists(target_)) fs::rename(target_, old, error);
  if (!error) fs::rename(staging_, target_, error);
  if (error) fail("{}: cannot be put in place: {}", target_.string(), error.message());
  committed_ = true;
  fs::remove_all(old, error);
}

}  // namespace aqhost
