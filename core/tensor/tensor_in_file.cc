#include "tensor/tensor_in_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {

at::Tensor tensor_in_file(const std::filesystem::path& path, at::IntArrayRef shape) {
  const auto bytes = static_cast<std::size_t>(c10::multiply_integers(shape)) * sizeof(float);
  if (bytes == 0) return at::zeros(shape, at::kFloat);
  std::string name = path.string() + ".XXXXXX";
  const int fd = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) fail("{}: {}", path.string(), std::strerror(errno));
  struct Close {  // the mapping stays
    int fd;
    ~Close() { ::close(fd); }
  } const close_in_the_end{fd};
  int error = ::unlink(name.c_str()) == 0 ? 0 : errno;
  if (error == 0) error = reserve_room(fd, static_cast<int64_t>(bytes));
  void* data = MAP_FAILED;
  if (error == 0) {
    data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) error = errno;
  }
  if (error != 0)
    fail("{}: {} bytes cannot be held in a file: {}", path.string(), bytes, std::strerror(error));
  return at::from_blob(
      data, shape, [bytes](void* begin) { ::munmap(begin, bytes); }, at::kFloat);
}

}  // namespace aqhost
