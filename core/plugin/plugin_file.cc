#include "plugin/plugin_file.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <deque>
#include <vector>

#include "base/error.h"
#include "base/sha256.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr int kMaxLinks = 40;  // the kernel's limit

/// Closes the descriptor in the destructor, unless it was released.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(Descriptor&& other) noexcept : number_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  int get() const { return number_; }
  int release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

std::string path_of(int descriptor) { return "/proc/self/fd/" + std::to_string(descriptor); }

struct stat status_of(int descriptor) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail("cannot be looked at: {}", std::strerror(errno));
  return status;
}

/// Follows a path from "/" component by component, as the kernel does. Everything on the way is
/// examined through an open descriptor, so that nothing can be replaced between the check and the
/// next step.
class TrustedWalk {
 public:
  explicit TrustedWalk(const fs::path& path) : at_(enter_root()) {
    push_front(fs::absolute(path));
    while (!rest_.empty()) step();
    if (!writable_.empty() || !foreign_.empty()) refuse();
  }
  /// A descriptor, opened with O_PATH, of what the path leads to.
  int descriptor() const { return at_.get(); }

 private:
  Descriptor enter_root() {
    Descriptor root(::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (root.get() < 0) fail("/: {}", std::strerror(errno));
    where_ = "/";
    check(where_, status_of(root.get()));
    return root;
  }

  void push_front(const fs::path& path) {
    const fs::path relative = path.relative_path();
    rest_.insert(rest_.begin(), relative.begin(), relative.end());
  }

  void step() {
    const fs::path name = rest_.front();
    rest_.pop_front();
    if (name.empty() || name == ".") return;
    const fs::path there = name == ".." ? where_.parent_path() : where_ / name;
    Descriptor next(::openat(at_.get(), name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (next.get() < 0) fail("cannot be opened: {}: {}", there.string(), std::strerror(errno));
    const struct stat status = status_of(next.get());
    check(there, status);
    if (S_ISLNK(status.st_mode)) return follow(next.get(), there);
    at_ = std::move(next);
    where_ = there;
  }

  void follow(int link, const fs::path& there) {
    if (++links_ > kMaxLinks) fail("cannot be opened: {}", std::strerror(ELOOP));
    std::array<char, PATH_MAX> text{};
    const ssize_t size = ::readlinkat(link, "", text.data(), text.size());
    if (size <= 0) fail("cannot be opened: {}: {}", there.string(), std::strerror(errno));
    const fs::path target(std::string(text.data(), static_cast<std::size_t>(size)));
    if (target.is_absolute()) at_ = enter_root();
    push_front(target);
  }

  void check(const fs::path& path, const struct stat& status) {
    if (status.st_uid != 0 && status.st_uid != ::geteuid())
      foreign_.push_back(fmt::format("{} belongs to user {}", path.string(), status.st_uid));
    if (S_ISLNK(status.st_mode)) return;  // the mode of a link has no effect
    const bool sticky = S_ISDIR(status.st_mode) && (status.st_mode & S_ISVTX) != 0;
    if ((status.st_mode & (S_IWGRP | S_IWOTH)) == 0 || sticky) return;
    writable_.push_back(path.string());
    reasons_.push_back(fmt::format("{} may be written to by {} (mode {:o})", path.string(),
                                   (status.st_mode & S_IWOTH) != 0 ? "others" : "its group",
                                   status.st_mode & 07777u));
  }

  [[noreturn]] void refuse() const {
    std::vector<std::string> reasons = foreign_, cures;
    reasons.insert(reasons.end(), reasons_.begin(), reasons_.end());
    if (!foreign_.empty()) cures.emplace_back("make root or yourself the owner (chown)");
    if (!writable_.empty())
      cures.push_back(
          fmt::format("take that right away (chmod go-w {})", fmt::join(writable_, " ")));
    fail("other users may change it: {}; {}, or give --trust-plugins", fmt::join(reasons, ", "),
         fmt::join(cures, " and "));
  }

  fs::path where_;
  std::deque<fs::path> rest_;
  int links_ = 0;
  std::vector<std::string> foreign_, reasons_, writable_;
  Descriptor at_;
};

int open_to_read(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) fail("cannot be opened: {}", std::strerror(errno));
  return descriptor;
}

int open_regular(const fs::path& path) {
  Descriptor file(open_to_read(path));
  if (!S_ISREG(status_of(file.get()).st_mode)) fail("is no regular file");
  return file.release();
}

}  // namespace

PluginFile::PluginFile(const fs::path& path, bool trust) : path_(path.string()) {
  if (trust) {
    descriptor_ = open_regular(path);
  } else {
    const TrustedWalk walk(path);
    descriptor_ = open_regular(path_of(walk.descriptor()));
  }
}

PluginFile::~PluginFile() {
  if (!kept_) ::close(descriptor_);
}

std::string PluginFile::open_path() const { return path_of(descriptor_); }

std::pair<dev_t, ino_t> PluginFile::identity() const {
  const struct stat status = status_of(descriptor_);
  return {status.st_dev, status.st_ino};
}

std::string PluginFile::sha256() const { return sha256_of(open_path()); }

}  // namespace aqhost
