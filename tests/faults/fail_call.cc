// This library is preloaded into aqhost and lets one system call fail. The environment says which:
//
//   AQ_FAIL_CALL   is the name of the call: pwrite, write, fsync, rename, posix_fallocate or open.
//   AQ_FAIL_PATH   is a part of a path. Only calls on files whose path contains it are counted.
//   AQ_FAIL_AT     is the number, from 1 on, of the counted call that fails; 0 lets none fail.
//   AQ_FAIL_ERRNO  is the errno with which it fails.
//   AQ_FAIL_COUNT  is the file that receives the number of counted calls when the program ends.
//
// Of the calls of open(), only those that may create a file are counted.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<int> calls{0};

const char* setting(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_below(const char* path) { return std::strstr(path, setting("AQ_FAIL_PATH")) != nullptr; }

bool is_below(int fd) {
  char link[64], path[4096];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = ::readlink(link, path, sizeof path - 1);
  if (n < 0) return false;
  path[n] = '\0';
  return is_below(path);
}

/// Counts this call if its name and path are those of the settings. Returns whether it must fail.
template <typename File>
bool fails(const char* call, File file) {
  if (std::strcmp(call, setting("AQ_FAIL_CALL")) != 0 || !is_below(file)) return false;
  return ++calls == std::atoi(setting("AQ_FAIL_AT"));
}

int error_number() { return std::atoi(setting("AQ_FAIL_ERRNO")); }

template <typename Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  if (!fails("pwrite", fd)) return real(fd, data, size, offset);
  errno = error_number();
  return -1;
}

ssize_t pwrite64(int fd, const void* data, size_t size, off_t offset) {
  return pwrite(fd, data, size, offset);
}

ssize_t write(int fd, const void* data, size_t size) {
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  if (!fails("write", fd)) return real(fd, data, size);
  errno = error_number();
  return -1;
}

int fsync(int fd) {
  static const auto real = next<int (*)(int)>("fsync");
  if (!fails("fsync", fd)) return real(fd);
  errno = error_number();
  return -1;
}

int rename(const char* from, const char* to) {
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  if (!fails("rename", from)) return real(from, to);
  errno = error_number();
  return -1;
}

int posix_fallocate(int fd, off_t offset, off_t size) {
  static const auto real = next<int (*)(int, off_t, off_t)>("posix_fallocate");
  return fails("posix_fallocate", fd) ? error_number() : real(fd, offset, size);
}

int posix_fallocate64(int fd, off_t offset, off_t size) {
  return posix_fallocate(fd, offset, size);
}

int open(const char* path, int flags, ...) {
  static const auto real = next<int (*)(const char*, int, mode_t)>("open");
  std::va_list arguments;
  va_start(arguments, flags);
  const auto mode = static_cast<mode_t>((flags & O_CREAT) != 0 ? va_arg(arguments, int) : 0);
  va_end(arguments);
  if ((flags & O_CREAT) == 0 || !fails("open", path)) return real(path, flags, mode);
  errno = error_number();
  return -1;
}

/// aqhost ends the process by this call.
void _exit(int status) {
  static const auto real = next<void (*)(int)>("_exit");
  if (const char* path = std::getenv("AQ_FAIL_COUNT"); path != nullptr) {
    if (std::FILE* file = std::fopen(path, "w"); file != nullptr) {
      std::fprintf(file, "%d\n", calls.load());
      std::fclose(file);
    }
  }
  real(status);
  __builtin_unreachable();
}

}  // extern "C"
