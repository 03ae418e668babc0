#include "checkpoint/writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kHeaderAlignment = 8;

/// Where the bytes of a tensor go.
struct Place {
  std::size_t shard;
  int64_t offset;  // in the file
  int64_t size;
  std::atomic<bool> written{false};
};

struct Shard {
  std::size_t group = 0;
  std::vector<const TensorInfo*> tensors;
  std::string name;
  int64_t bytes = 0;
  int fd = -1;
};

/// Appends shards with the tensors of a group in the given order. A new shard begins where the next
/// tensor would exceed `maximum` bytes.
void split(std::size_t group, const std::vector<TensorInfo>& tensors, int64_t maximum,
           std::vector<Shard>& shards) {
  bool full = true;
  for (const TensorInfo& info : tensors) {
    const int64_t bytes = info.nbytes();
    if (full || (shards.back().bytes > 0 && shards.back().bytes + bytes > maximum)) {
      shards.emplace_back();
      shards.back().group = group;
      full = false;
    }
    shards.back().bytes += bytes;
    shards.back().tensors.push_back(&info);
  }
}

/// The length and the JSON text, padded so that the data begins aligned.
std::string header_of(const Shard& shard) {
  nlohmann::ordered_json header;
  header["__metadata__"]["format"] = "pt";
  int64_t offset = 0;
  for (const TensorInfo* info : shard.tensors) {
    const int64_t end = offset + info->nbytes();
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
  std::vector<std::vector<TensorInfo>> groups;
  std::vector<Shard> shards;
  std::map<std::string, Place, std::less<>> places;

  std::string path_of(const Shard& shard) const { return (directory / shard.name).string(); }
  /// The path that the file has until it is finished.
  std::string unfinished_path_of(const Shard& shard) const { return path_of(shard) + ".part"; }

  ~Impl() {
    for (const Shard& shard : shards)
      if (shard.fd >= 0) ::close(shard.fd);
  }

  template <typename Body>
  void each_shard(std::size_t group, Body body) {
    for (Shard& shard : shards)
      if (shard.group == group) body(shard);
  }

  /// Finds the place of a tensor and checks that it was announced with this size, that its group
  /// has begun, and that it was not written before.
  const Place& take(std::string_view name, std::size_t size) {
    const auto it = places.find(name);
    if (it == places.end()) fail("tensor {} was not announced to be written", name);
    Place& place = it->second;
    if (static_cast<int64_t>(size) != place.size)
      fail("tensor {}: {} bytes to write, {} were announced", name, size, place.size);
    if (shards[place.shard].fd < 0) fail("tensor {} is written before its group was begun", name);
    if (place.written.exchange(true)) fail("tensor {} is written twice", name);
    return place;
  }

  void lay_out() {
    for (std::size_t i = 0; i < shards.size(); i++) {
      Shard& shard = shards[i];
      shard.name = shards.size() == 1
                       ? "model.safetensors"
                       : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      auto offset = static_cast<int64_t>(header_of(shard).size());
      for (const TensorInfo* info : shard.tensors) {
        const auto [it, added] = places.try_emplace(info->name);
        if (!added) fail("{}: tensor {} is to be written twice", directory.string(), info->name);
        it->second.shard = i;
        it->second.offset = offset;
        it->second.size = info->nbytes();
        offset += it->second.size;
      }
    }
  }

  /// Flushes and closes the file of a shard.
  void close_flushed(Shard& shard) const {
    const int fd = std::exchange(shard.fd, -1);
    const bool flushed = ::fsync(fd) == 0;
    const int error = errno;
    if (::close(fd) != 0 || !flushed)
      fail("{}: {}", unfinished_path_of(shard), std::strerror(flushed ? errno : error));
  }

  /// Creates the file of a shard at its full size, with its header.
  void create(Shard& shard, bool flush) const {
    const std::string path = unfinished_path_of(shard);
    // A process of an earlier run that still writes to the file must not write to the new one.
    std::error_code ignored;
    if (fs::is_regular_file(fs::symlink_status(path, ignored))) ::unlink(path.c_str());
    shard.fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (shard.fd < 0) fail("{}: {}", path, std::strerror(errno));
    const std::string header = header_of(shard);
    const int64_t size = static_cast<int64_t>(header.size()) + shard.bytes;
    const int error = reserve_room(shard.fd, size);
    if (error != 0) fail("{}: cannot reserve {} bytes: {}", path, size, std::strerror(error));
    write_at(shard.fd, reinterpret_cast<const std::byte*>(header.data()), header.size(), 0, path);
    if (flush && ::fsync(shard.fd) != 0) fail("{}: {}", path, std::strerror(errno));
  }
};

Writer::Writer(const fs::path& directory, std::vector<std::vector<TensorInfo>> groups,
               int64_t max_shard_bytes)
    : impl_(std::make_unique<Impl>()) {
  impl_->directory = directory;
  impl_->groups = std::move(groups);
  for (std::size_t g = 0; g < impl_->groups.size(); g++) {
    auto& tensors = impl_->groups[g];
    // Wide elements come first, so that every tensor begins at a multiple of its element size.
    std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
      return dtype_size(a.dtype) > dtype_size(b.dtype);
    });
    split(g, tensors, max_shard_bytes, impl_->shards);
  }
  impl_->lay_out();
}

Writer::~Writer() = default;

std::vector<std::string> Writer::files(std::size_t group) const {
  std::vector<std::string> names;
  impl_->each_shard(group, [&](const Shard& shard) { names.push_back(shard.name); });
  return names;
}

int64_t Writer::bytes(std::size_t group) const {
  int64_t bytes = 0;
  impl_->each_shard(group, [&](const Shard& shard) { bytes += shard.bytes; });
  return bytes;
}

int64_t Writer::bytes() const {
  int64_t bytes = 0;
  for (const Shard& shard : impl_->shards) bytes += shard.bytes;
  return bytes;
}

void Writer::begin(std::size_t group, bool flush) {
  impl_->each_shard(group, [&](Shard& shard) { impl_->create(shard, flush); });
}

void Writer::join(std::size_t group) {
  impl_->each_shard(group, [&](Shard& shard) {
    const std::string path = impl_->unfinished_path_of(shard);
    shard.fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (shard.fd < 0)
      fail(
          "{}: {}: this process does not see the file that rank 0 has created; the processes of a "
          "run "
          "need one folder on a file system that they share",
          path, std::strerror(errno));
  });
}

std::vector<std::string> Writer::leave(std::size_t group) {
  impl_->each_shard(group, [&](Shard& shard) { impl_->close_flushed(shard); });
  std::vector<std::string> names;
  for (const auto& [name, place] : impl_->places)
    if (impl_->shards[place.shard].group == group && place.written) names.push_back(name);
  return names;
}

void Writer::note_written(const std::string& name) {
  const auto it = impl_->places.find(name);
  if (it == impl_->places.end()) fail("tensor {} was not announced to be written", name);
  if (it->second.written.exchange(true)) fail("tensor {} is written twice", name);
}

void Writer::write(std::string_view name, std::span<const std::byte> bytes) {
  const Place& place = impl_->take(name, bytes.size());
  const Shard& shard = impl_->shards[place.shard];
  write_at(shard.fd, bytes.data(), bytes.size(), place.offset, impl_->unfinished_path_of(shard));
}

void Writer::copy(std::string_view name, const Read& read, int64_t part_bytes) {
  const auto it = impl_->places.find(name);
  const int64_t size = it == impl_->places.end() ? 0 : it->second.size;
  const Place& place = impl_->take(name, static_cast<std::size_t>(size));
  const Shard& shard = impl_->shards[place.shard];
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min(size, part_bytes)));
  for (int64_t begin = 0; begin < size; begin += part_bytes) {
    const auto part =
        std::span(buffer).first(static_cast<std::size_t>(std::min(part_bytes, size - begin)));
    read(begin, part);
    write_at(shard.fd, part.data(), part.size(), place.offset + begin,
             impl_->unfinished_path_of(shard));
  }
}

void Writer::check_written(std::size_t group) const {
  for (const auto& [name, place] : impl_->places)
    if (impl_->shards[place.shard].group == group && !place.written)
      fail("tensor {} was never written", name);
}

void Writer::finish(std::size_t group) {
  check_written(group);
  impl_->each_shard(group, [&](Shard& shard) {
    const std::string path = impl_->unfinished_path_of(shard);
    impl_->close_flushed(shard);
    if (::rename(path.c_str(), impl_->path_of(shard).c_str()) != 0)
      fail("{}: {}", path, std::strerror(errno));
  });
}

void Writer::write_index() const {
  if (impl_->shards.size() == 1) return;
  Json index{{"metadata", {{"total_size", bytes()}}}, {"weight_map", Json::object()}};
  for (const Shard& shard : impl_->shards)
    for (const TensorInfo* info : shard.tensors) index["weight_map"][info->name] = shard.name;
  write_file(impl_->directory / "model.safetensors.index.json", to_text(index, 2) + "\n");
}

}  // namespace aqhost
