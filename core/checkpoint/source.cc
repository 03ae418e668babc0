#include "checkpoint/source.h"

#include <algorithm>

#include "base/error.h"

namespace aqhost {

double StoredSize::bits_per_weight() const {
  return 8 * static_cast<double>(weight_bytes) / static_cast<double>(std::max<int64_t>(1, weights));
}

void Source::read_bytes(std::string_view name, int64_t begin, std::span<std::byte> out) const {
  if (!read_stored(name, begin, out))
    fail("{}: tensor {} is not stored in the form in which it is read", file_of(name), name);
}

std::vector<std::byte> Source::bytes(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) fail("{}: there is no tensor {}", directory(), name);
  std::vector<std::byte> bytes(static_cast<std::size_t>(info->nbytes()));
  read_bytes(name, 0, bytes);
  return bytes;
}

StoredSize Source::stored_size() const {
  StoredSize size;
  for (const TensorInfo& info : tensors()) {
    size.bytes += info.nbytes();
    size.weights += info.numel();
  }
  size.weight_bytes = size.bytes;
  return size;
}

}  // namespace aqhost
