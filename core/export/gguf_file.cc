#include "export/gguf_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");

constexpr uint32_t kGgufVersion = 3;
constexpr int64_t kGgufAlignment = 32;
constexpr std::size_t kLongestTensorName = 63;  // GGML_MAX_NAME - 1

/// gguf_type of gguf.h.
enum ValueType : uint32_t {
  kU16 = 2,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9
};

template <typename T>
void append_raw(std::string& bytes, T value) {
  char raw[sizeof value];
  std::memcpy(raw, &value, sizeof value);
  bytes.append(raw, sizeof value);
}

void append_text(std::string& bytes, std::string_view text) {
  append_raw(bytes, uint64_t{text.size()});
  bytes += text;
}

int64_t aligned(int64_t offset) {
  return (offset + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment;
}

/// Throws an Error unless T holds the value.
template <typename T>
T fitting(std::string_view key, int64_t value) {
  if (!std::in_range<T>(value))
    fail("{} is {}, and GGUF has {} bits {} a sign for it", key, value, 8 * sizeof(T),
         std::is_signed_v<T> ? "with" : "without");
  return static_cast<T>(value);
}

/// The first tensors of files of at most `max_bytes`, of which the first has also `metadata` bytes.
std::vector<std::size_t> split(const std::vector<GgufTensorInfo>& tensors, int64_t metadata,
                               int64_t max_bytes) {
  constexpr int64_t kFixedBytes = 256;  // the header, the keys of a split file, and padding
  std::vector<std::size_t> first{0};
  int64_t bytes = kFixedBytes + metadata;
  for (std::size_t i = 0; i < tensors.size(); i++) {
    const GgufTensorInfo& tensor = tensors[i];
    const std::size_t entry = tensor.name.size() + 8 * tensor.shape.size() + 24;
    const int64_t added = static_cast<int64_t>(entry) + aligned(tensor.bytes());
    if (i > first.back() && bytes + added > max_bytes) {
      first.push_back(i);
      bytes = kFixedBytes;
    }
    bytes += added;
  }
  return first;
}

/// NAME-00002-of-00003.gguf
fs::path split_path(const fs::path& path, std::size_t index, std::size_t count) {
  fs::path stem = path;
  if (stem.extension() == ".gguf") stem.replace_extension();
  return fmt::format("{}-{:05}-of-{:05}.gguf", stem.string(), index + 1, count);
}

}  // namespace

void GgufMetadata::key(std::string_view key, uint32_t type) {
  append_text(bytes_, key);
  append_raw(bytes_, type);
  count_++;
}

void GgufMetadata::array(std::string_view name, uint32_t type, std::size_t size) {
  key(name, kArray);
  append_raw(bytes_, type);
  append_raw(bytes_, uint64_t{size});
}

void GgufMetadata::text(std::string_view name, std::string_view value) {
  key(name, kString);
  append_text(bytes_, value);
}

void GgufMetadata::u16(std::string_view name, int64_t value) {
  const auto fits = fitting<uint16_t>(name, value);
  key(name, kU16);
  append_raw(bytes_, fits);
}

void GgufMetadata::u32(std::string_view name, int64_t value) {
  const auto fits = fitting<uint32_t>(name, value);
  key(name, kU32);
  append_raw(bytes_, fits);
}

void GgufMetadata::i32(std::string_view name, int64_t value) {
  const auto fits = fitting<int32_t>(name, value);
  key(name, kI32);
  append_raw(bytes_, fits);
}

void GgufMetadata::f32(std::string_view name, float value) {
  key(name, kF32);
  append_raw(bytes_, value);
}

void GgufMetadata::flag(std::string_view name, bool value) {
  key(name, kBool);
  append_raw(bytes_, static_cast<uint8_t>(value ? 1 : 0));
}

void GgufMetadata::texts(std::string_view name, const std::vector<std::string>& values) {
  array(name, kString, values.size());
  for (const std::string& value : values) append_text(bytes_, value);
}

void GgufMetadata::integers(std::string_view name, const std::vector<int32_t>& values) {
  array(name, kI32, values.size());
  for (const int32_t value : values) append_raw(bytes_, value);
}

void GgufMetadata::numbers(std::string_view name, const std::vector<float>& values) {
  array(name, kF32, values.size());
  for (const float value : values) append_raw(bytes_, value);
}

void GgufMetadata::append(const GgufMetadata& other) {
  bytes_ += other.bytes_;
  count_ += other.count_;
}

int64_t GgufTensorInfo::bytes() const {
  const GgufTypeInfo& info = info_of(type);
  int64_t n = info.bytes;
  for (const int64_t d : shape) n *= d;
  return n / info.weights;
}

GgufWriter::GgufWriter(fs::path path, const GgufMetadata& metadata,
                       std::vector<GgufTensorInfo> tensors, bool overwrite)
    : path_(std::move(path)), part_(path_.string() + ".part"), tensors_(std::move(tensors)) {
  std::string header = "GGUF";
  append_raw(header, kGgufVersion);
  append_raw(header, uint64_t{tensors_.size()});
  append_raw(header, metadata.count());
  header += metadata.bytes();
  int64_t offset = 0;
  for (const GgufTensorInfo& tensor : tensors_) {
    if (tensor.name.size() > kLongestTensorName)
      fail("{}: tensor name {} has {} bytes, and llama.cpp reads at most {}", path_.string(),
           tensor.name, tensor.name.size(), kLongestTensorName);
    append_text(header, tensor.name);
    append_raw(header, static_cast<uint32_t>(tensor.shape.size()));
    for (auto d = tensor.shape.rbegin(); d != tensor.shape.rend(); ++d)
      append_raw(header, static_cast<uint64_t>(*d));
    append_raw(header, static_cast<uint32_t>(tensor.type));
    append_raw(header, static_cast<uint64_t>(offset));
    places_.push_back({offset, offset + tensor.bytes()});
    offset = aligned(places_.back().end);
  }
  header.resize(static_cast<std::size_t>(aligned(static_cast<int64_t>(header.size()))), '\0');
  const auto start = static_cast<int64_t>(header.size());
  for (Place& place : places_) {
    place.next += start;
    place.end += start;
  }
  file_bytes_ = start + offset;
  try {
    create(overwrite);
    write_at(0, std::as_bytes(std::span(header)));
  } catch (...) {
    if (fd_ >= 0) ::close(fd_);
    if (fd_ >= 0) ::unlink(part_.c_str());
    throw;
  }
}

GgufWriter::~GgufWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(part_.c_str());
}

void GgufWriter::create(bool overwrite) {
  std::error_code ignored;
  if (fs::is_directory(path_, ignored))
    fail("{}: is a folder, expected the name of a file", path_.string());
  if (!overwrite && fs::exists(fs::symlink_status(path_, ignored)))
    fail("{}: exists already; choose another name, or give --overwrite", path_.string());
  fd_ = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("{}: {}", part_.string(), std::strerror(errno));
  const int error = reserve_room(fd_, file_bytes_);
  if (error != 0)
    fail("{}: {} (the file takes {} bytes)", part_.string(), std::strerror(error), file_bytes_);
}

void GgufWriter::write_at(int64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("{}: {}", part_.string(), std::strerror(errno));
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += n;
  }
}

void GgufWriter::write(std::size_t tensor, std::span<const std::byte> bytes) {
  Place& place = places_.at(tensor);
  const auto size = static_cast<int64_t>(bytes.size());
  if (size > place.end - place.next)
    fail("{}: {} gets {} bytes more than it has", path_.string(), tensors_[tensor].name,
         size - (place.end - place.next));
  write_at(place.next, bytes);
  place.next += size;
}

void GgufWriter::finish() {
  flush();
  publish();
}

void GgufWriter::flush() {
  for (std::size_t i = 0; i < places_.size(); i++)
    if (places_[i].next != places_[i].end)
      fail("{}: {} lacks {} bytes", path_.string(), tensors_[i].name,
           places_[i].end - places_[i].next);
  if (::fsync(fd_) != 0) fail("{}: {}", part_.string(), std::strerror(errno));
}

void GgufWriter::publish() {
  if (::rename(part_.c_str(), path_.c_str()) != 0)
    fail("{}: {}", path_.string(), std::strerror(errno));
  ::close(fd_);
  fd_ = -1;
  flush_folder(path_.has_parent_path() ? path_.parent_path() : fs::path("."));
}

GgufFiles::GgufFiles(const fs::path& path, const GgufMetadata& metadata,
                     std::vector<GgufTensorInfo> tensors, int64_t max_bytes, bool overwrite)
    : first_{0} {
  if (max_bytes > 0)
    first_ = split(tensors, static_cast<int64_t>(metadata.bytes().size()), max_bytes);
  const std::size_t files = first_.size();
  for (std::size_t i = 0; i < files; i++) {
    GgufMetadata of_file;
    if (i == 0) of_file.append(metadata);
    if (files > 1) {
      of_file.u16("split.no", static_cast<int64_t>(i));
      of_file.u16("split.count", static_cast<int64_t>(files));
      of_file.i32("split.tensors.count", static_cast<int64_t>(tensors.size()));
    }
    const auto at = [&](std::size_t file) {
      return tensors.begin() + static_cast<int64_t>(file < files ? first_[file] : tensors.size());
    };
    paths_.push_back(files > 1 ? split_path(path, i, files) : path);
    writers_.push_back(std::make_unique<GgufWriter>(
        paths_.back(), of_file, std::vector<GgufTensorInfo>(at(i), at(i + 1)), overwrite));
  }
}

void GgufFiles::write(std::size_t tensor, std::span<const std::byte> bytes) {
  const auto after = std::ranges::upper_bound(first_, tensor);
  const auto file = static_cast<std::size_t>(after - first_.begin() - 1);
  writers_[file]->write(tensor - first_[file], bytes);
}

void GgufFiles::finish() {
  for (const auto& writer : writers_) writer->flush();
  for (std::size_t i = 0; i < writers_.size(); i++) {
    try {
      writers_[i]->publish();
    } catch (...) {
      for (std::size_t done = 0; done < i; done++) ::unlink(paths_[done].c_str());
      throw;
    }
  }
}

int64_t GgufFiles::bytes() const {
  int64_t sum = 0;
  for (const auto& writer : writers_) sum += writer->file_bytes();
  return sum;
}

}  // namespace aqhost
