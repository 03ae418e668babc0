#include "checkpoint/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/sha256.h"

namespace aqhost {
namespace {

constexpr uint64_t kMaximumHeader = 100'000'000;  // the limit of the reference implementation
constexpr std::size_t kLengthBytes = 8;

/// The size of the length field and the JSON text after it, from the first bytes of a file.
std::size_t header_bytes(std::span<const std::byte> start, int64_t file_size,
                         const std::string& where) {
  const auto refuse_other = [&] {
    const std::string_view text(reinterpret_cast<const char*>(start.data()), start.size());
    if (const auto other = misplaced_file(text); !other.empty()) fail("{}: is {}", where, other);
  };
  if (start.size() < kLengthBytes) {
    refuse_other();
    fail("{}: {} bytes, too short for a safetensors file (8-byte header length)", where, file_size);
  }
  uint64_t length = 0;
  std::memcpy(&length, start.data(), kLengthBytes);
  if (length == 0) {
    refuse_other();
    fail("{}: header length 0, expected at least 2 bytes of JSON: not a safetensors file", where);
  }
  if (length > kMaximumHeader) {
    refuse_other();
    fail("{}: header length {}, expected at most {}: not a safetensors file", where, length,
         kMaximumHeader);
  }
  if (length > static_cast<uint64_t>(file_size) - kLengthBytes)
    fail("{}: header length {}, but the file has {} bytes: truncated, download it again", where,
         length, file_size);
  return kLengthBytes + static_cast<std::size_t>(length);
}

/// A non-negative integer that fits an int64_t.
int64_t size_of(const Json& value, const std::string& what) {
  if (!value.is_number_unsigned() ||
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    fail("{} is {}, expected a non-negative integer", what, value.dump());
  return value.get<int64_t>();
}

/// Shape x element size. Throws an Error if it does not fit an int64_t.
int64_t bytes_of(const TensorInfo& info, const std::string& what) {
  int64_t bytes = dtype_size(info.dtype);
  for (const int64_t d : info.shape)
    if (__builtin_mul_overflow(bytes, d, &bytes))
      fail("{}.shape [{}] is too large", what, fmt::join(info.shape, ", "));
  return bytes;
}

const Json& member(const Json& entry, const char* key, const std::string& what) {
  const auto it = entry.find(key);
  if (it == entry.end()) fail("{} has no \"{}\"", what, key);
  return *it;
}

/// `data` is the offset at which the data begins, `data_size` the number of its bytes.
StoredTensor parse_entry(const std::string& name, const Json& entry, int64_t data,
                         int64_t data_size, const std::string& where) {
  const std::string what = fmt::format("{}: tensor {}", where, name);
  if (!entry.is_object()) fail("{} is {}, expected an object", what, entry.type_name());
  for (const auto& [key, value] : entry.items())
    if (key != "dtype" && key != "shape" && key != "data_offsets")
      fail("{} has the unknown field \"{}\"", what, key);

  StoredTensor tensor;
  tensor.name = name;
  const Json& dtype = member(entry, "dtype", what);
  const auto type =
      dtype.is_string() ? parse_dtype(dtype.get_ref<const std::string&>()) : std::optional<DType>();
  if (!type) fail("{}.dtype is {}, which is not known", what, dtype.dump());
  tensor.dtype = *type;
  const Json& shape = member(entry, "shape", what);
  if (!shape.is_array()) fail("{}.shape is {}, expected an array", what, shape.dump());
  for (const Json& d : shape) tensor.shape.push_back(size_of(d, what + ".shape"));
  const Json& offsets = member(entry, "data_offsets", what);
  if (!offsets.is_array() || offsets.size() != 2)
    fail("{}.data_offsets is {}, expected [begin, end]", what, offsets.dump());
  const int64_t begin = size_of(offsets[0], what + ".data_offsets");
  const int64_t end = size_of(offsets[1], what + ".data_offsets");
  if (begin > end || end > data_size)
    fail("{}.data_offsets [{}, {}] do not lie within the {} bytes of data{}", what, begin, end,
         data_size, end > data_size ? "; the file may be truncated" : "");
  if (const int64_t expected = bytes_of(tensor, what); end - begin != expected)
    fail("{}: {} [{}] takes {} bytes, data_offsets [{}, {}] have {}", what,
         dtype_name(tensor.dtype), fmt::join(tensor.shape, ", "), expected, begin, end,
         end - begin);
  tensor.offset = data + begin;
  tensor.size = end - begin;
  return tensor;
}

/// Checks that the ranges follow one another without gaps from the first byte at `next` to `end`.
void check_coverage(const std::vector<StoredTensor>& tensors, int64_t next, int64_t end,
                    const std::string& where) {
  std::vector<const StoredTensor*> order;
  for (const StoredTensor& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return std::tie(a->offset, a->size, a->name) < std::tie(b->offset, b->size, b->name);
  });
  for (std::size_t i = 1; i < order.size(); i++)
    if (order[i]->offset < order[i - 1]->offset + order[i - 1]->size)
      fail("{}: tensors {} and {} overlap", where, order[i - 1]->name, order[i]->name);
  for (const StoredTensor* t : order) {
    if (t->offset > next)
      fail("{}: {} bytes before tensor {} belong to no tensor", where, t->offset - next, t->name);
    next = t->offset + t->size;
  }
  if (next != end) fail("{}: the last {} bytes belong to no tensor", where, end - next);
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> start, int64_t file_size,
                                    const std::string& where) {
  const std::size_t header_end = header_bytes(start, file_size, where);
  const std::string_view text(reinterpret_cast<const char*>(start.data()), header_end);
  const auto data = static_cast<int64_t>(header_end);
  const Json header = parse_json(text.substr(kLengthBytes), where);
  if (!header.is_object()) fail("{}: the header is no JSON object", where);
  SafetensorsHeader result;
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") {
      result.tensors.push_back(parse_entry(name, entry, data, file_size - data, where));
      continue;
    }
    if (!entry.is_object()) fail("{}: __metadata__ is no object", where);
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) fail("{}: __metadata__.{} is no string", where, key);
      result.metadata[key] = value.get<std::string>();
    }
  }
  std::sort(result.tensors.begin(), result.tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  check_coverage(result.tensors, data, file_size, where);
  return result;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  constexpr int64_t kTold = 64;  // enough to recognise other kinds of file
  std::vector<std::byte> start(static_cast<std::size_t>(std::min(file_.size(), kTold)));
  file_.read(0, start);
  start.resize(header_bytes(start, file_.size(), path.string()));
  file_.read(0, start);
  header_bytes_ = static_cast<int64_t>(start.size());
  SafetensorsHeader header = parse_safetensors(start, file_.size(), path.string());
  tensors_ = std::move(header.tensors);
  metadata_ = std::move(header.metadata);
}

std::string SafetensorsFile::header_sha256() const { return sha256_of(file_, header_bytes_); }

std::string SafetensorsFile::sample_sha256() const {
  constexpr int64_t kPieces = 256, kPiece = 4096;
  std::vector<std::byte> pieces;
  const int64_t step = std::max(kPiece, file_.size() / kPieces);
  for (int64_t at = 0; at < file_.size(); at += step) {
    const auto size = static_cast<std::size_t>(std::min(kPiece, file_.size() - at));
    pieces.resize(pieces.size() + size);
    file_.read(at, std::span(pieces).last(size));
  }
  return sha256_of(pieces);
}

void SafetensorsFile::read(const StoredTensor& tensor, int64_t begin,
                           std::span<std::byte> out) const {
  file_.read(tensor.offset + begin, out, "tensor " + tensor.name);
}

}  // namespace aqhost
