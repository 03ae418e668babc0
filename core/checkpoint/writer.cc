#include "checkpoint/writer.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kHeaderAlignment = 8;
constexpr int64_t kPart = int64_t{1} << 22;

int64_t bytes_of(const TensorInfo& info) { return info.numel() * dtype_size(info.dtype); }

/// Where a tensor's bytes go.
struct Place {
  std::size_t shard;
  int64_t offset;  // in the file
  int64_t size;
  std::atomic<bool> written{false};
};

struct Shard {
  std::vector<const TensorInfo*> tensors;
  std::string name;
  int fd = -1;
};

/// Tensors in the order given, a new shard where the next would pass `most` bytes.
std::vector<Shard> split(const std::vector<TensorInfo>& tensors, int64_t most) {
  std::vector<Shard> shards(1);
  int64_t size = 0;
  for (const TensorInfo& info : tensors) {
    if (size > 0 && size + bytes_of(info) > most) {
      shards.emplace_back();
      size = 0;
    }
    size += bytes_of(info);
    shards.back().tensors.push_back(&info);
  }
  for (std::size_t i = 0; i < shards.size(); i++)
    shards[i].name = shards.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  return shards;
}

/// Length and JSON, padded so that the data begins aligned.
std::string header_of(const Shard& shard) {
  nlohmann::ordered_json header;
  header["__metadata__"]["format"] = "pt";
  int64_t offset = 0;
  for (const TensorInfo* info : shard.tensors) {
    const int64_t end = offset + bytes_of(*info);
    header[info->name] = {{"dtype", dtype_name(info->dtype)},
                          {"shape", info->shape},
                          {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = to_text(header);
  text.resize((text.size() + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment, ' ');
  const uint64_t length = text.size();
  std::string result(sizeof length, '\0');
  std::memcpy(result.data(), &length, sizeof length);
  return result + text;
}

void write_at(int fd, const std::byte* data, std::size_t size, int64_t offset,
              const std::string& name) {
  while (size > 0) {
    const ssize_t n = ::pwrite(fd, data, size, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("{}: {}", name, std::strerror(errno));
    data += n;
    size -= static_cast<std::size_t>(n);
    offset += n;
  }
}

}  // namespace

struct Writer::Impl {
  fs::path directory;
  std::vector<TensorInfo> tensors;
  std::vector<Shard> shards;
  std::map<std::string, Place, std::less<>> places;
  int64_t total = 0;

  std::string path_of(const Shard& shard) const { return (directory / shard.name).string(); }

  ~Impl() {
    for (const Shard& shard : shards)
      if (shard.fd >= 0) ::close(shard.fd);
  }

  /// Announced, of that size, and not written before.
  const Place& take(std::string_view name, std::size_t size) {
    const auto it = places.find(name);
    if (it == places.end()) fail("tensor {} was not announced to be written", name);
    Place& place = it->second;
    if (static_cast<int64_t>(size) != place.size)
      fail("tensor {}: {} bytes to write, {} were announced", name, size, place.size);
    if (place.written.exchange(true)) fail("tensor {} is written twice", name);
    return place;
  }

  /// Error if the disk has not room for the tensors, which are nearly all there is to write.
  void check_room() const {
    int64_t needed = 0;
    for (const TensorInfo& info : tensors) needed += bytes_of(info);
    struct statvfs disk {};
    if (::statvfs(directory.c_str(), &disk) != 0 || disk.f_blocks == 0) return;  // not told
    const auto free = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
    if (static_cast<double>(needed) > free)
      fail("{}: No space left on device: the export takes {:.3f} GB, {:.3f} GB are free",
           directory.string(), static_cast<double>(needed) / 1e9, free / 1e9);
  }

  /// Creates a shard's file at its full size, with its header.
  void create(std::size_t index) {
    Shard& shard = shards[index];
    const std::string path = path_of(shard);
    shard.fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (shard.fd < 0) fail("{}: {}", path, std::strerror(errno));
    const std::string header = header_of(shard);
    auto offset = static_cast<int64_t>(header.size());
    for (const TensorInfo* info : shard.tensors) {
      const auto [it, added] = places.try_emplace(info->name);
      if (!added) fail("{}: tensor {} is to be written twice", directory.string(), info->name);
      it->second.shard = index;
      it->second.offset = offset;
      it->second.size = bytes_of(*info);
      offset += it->second.size;
      total += it->second.size;
    }
    int error = EINTR;
    while (error == EINTR) {
      check_interrupt();
      error = ::posix_fallocate(shard.fd, 0, offset);
    }
    if (error != 0) fail("{}: cannot reserve {} bytes: {}", path, offset, std::strerror(error));
    write_at(shard.fd, reinterpret_cast<const std::byte*>(header.data()), header.size(), 0, path);
  }

  void write_index() const {
    if (shards.size() == 1) return;
    Json index{{"metadata", {{"total_size", total}}}, {"weight_map", Json::object()}};
    for (const Shard& shard : shards)
      for (const TensorInfo* info : shard.tensors) index["weight_map"][info->name] = shard.name;
    write_file(directory / "model.safetensors.index.json", to_text(index, 2) + "\n");
  }
};

Writer::Writer(const fs::path& directory, std::vector<TensorInfo> tensors, int64_t max_shard_bytes)
    : impl_(std::make_unique<Impl>()) {
  impl_->directory = directory;
  impl_->tensors = std::move(tensors);
  // wide elements first: every tensor then begins at a multiple of its element's size
  std::stable_sort(impl_->tensors.begin(), impl_->tensors.end(),
                   [](const TensorInfo& a, const TensorInfo& b) {
                     return dtype_size(a.dtype) > dtype_size(b.dtype);
                   });
  impl_->shards = split(impl_->tensors, max_shard_bytes);
  impl_->check_room();
  for (std::size_t i = 0; i < impl_->shards.size(); i++) impl_->create(i);
}

Writer::~Writer() = default;

void Writer::write(std::string_view name, std::span<const std::byte> bytes) {
  const Place& place = impl_->take(name, bytes.size());
  const Shard& shard = impl_->shards[place.shard];
  write_at(shard.fd, bytes.data(), bytes.size(), place.offset, impl_->path_of(shard));
}

void Writer::copy(std::string_view name, const Read& read) {
  const auto it = impl_->places.find(name);
  const int64_t size = it == impl_->places.end() ? 0 : it->second.size;
  const Place& place = impl_->take(name, static_cast<std::size_t>(size));
  const Shard& shard = impl_->shards[place.shard];
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min(size, kPart)));
  for (int64_t begin = 0; begin < size; begin += kPart) {
    check_interrupt();
    const auto part =
        std::span(buffer).first(static_cast<std::size_t>(std::min(kPart, size - begin)));
    read(begin, part);
    write_at(shard.fd, part.data(), part.size(), place.offset + begin, impl_->path_of(shard));
  }
}

void Writer::check_written() const {
  for (const auto& [name, place] : impl_->places)
    if (!place.written) fail("tensor {} was never written", name);
}

int64_t Writer::finish() {
  check_written();
  for (Shard& shard : impl_->shards) {
    const int fd = std::exchange(shard.fd, -1);
    const bool flushed = ::fsync(fd) == 0;
    if (::close(fd) != 0 || !flushed) fail("{}: {}", impl_->path_of(shard), std::strerror(errno));
  }
  impl_->write_index();
  return impl_->total;
}

}  // namespace aqhost
