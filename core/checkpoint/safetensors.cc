#include "checkpoint/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>

#include "base/error.h"
#include "base/json.h"

namespace aqhost {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // as the reference implementation
constexpr std::size_t kLengthBytes = 8;

/// The JSON text of the header, after its little-endian length.
std::string_view header_text(std::span<const std::byte> bytes, const std::string& where) {
  if (bytes.size() < kLengthBytes)
    fail("{}: {} bytes, too short for a safetensors file (8-byte header length)", where,
         bytes.size());
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMaxHeader)
    fail("{}: header length {}, expected at most {}: not a safetensors file", where, length,
         kMaxHeader);
  if (length > bytes.size() - kLengthBytes)
    fail("{}: header length {}, but the file has {} bytes: truncated", where, length, bytes.size());
  return {reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
          static_cast<std::size_t>(length)};
}

/// A non-negative integer that an int64_t holds.
int64_t size_of(const Json& value, const std::string& what) {
  if (!value.is_number_unsigned() ||
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    fail("{} is {}, expected a non-negative integer", what, value.dump());
  return value.get<int64_t>();
}

/// shape x element size, or Error where that passes int64_t.
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

StoredTensor parse_entry(const std::string& name, const Json& entry,
                         std::span<const std::byte> data, const std::string& where) {
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
  if (begin > end || end > static_cast<int64_t>(data.size()))
    fail("{}.data_offsets [{}, {}] do not lie within the {} bytes of data", what, begin, end,
         data.size());
  if (const int64_t expected = bytes_of(tensor, what); end - begin != expected)
    fail("{}: {} [{}] takes {} bytes, data_offsets [{}, {}] have {}", what,
         dtype_name(tensor.dtype), fmt::join(tensor.shape, ", "), expected, begin, end,
         end - begin);
  tensor.bytes =
      data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  return tensor;
}

/// Ranges follow one another from the first to the last byte.
void check_coverage(const std::vector<StoredTensor>& tensors, std::span<const std::byte> data,
                    const std::string& where) {
  std::vector<const StoredTensor*> order;
  for (const StoredTensor& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return std::tuple(a->bytes.data(), a->bytes.size(), std::string_view(a->name)) <
           std::tuple(b->bytes.data(), b->bytes.size(), std::string_view(b->name));
  });
  for (std::size_t i = 1; i < order.size(); i++) {
    const auto& before = order[i - 1]->bytes;
    if (order[i]->bytes.data() < before.data() + before.size())
      fail("{}: tensors {} and {} overlap", where, order[i - 1]->name, order[i]->name);
  }
  const std::byte* next = data.data();
  for (const StoredTensor* t : order) {
    if (t->bytes.data() > next)
      fail("{}: {} bytes before tensor {} belong to no tensor", where, t->bytes.data() - next,
           t->name);
    next = t->bytes.data() + t->bytes.size();
  }
  if (next != data.data() + data.size())
    fail("{}: the last {} bytes belong to no tensor", where, data.data() + data.size() - next);
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, const std::string& where) {
  const std::string_view text = header_text(bytes, where);
  const auto data = bytes.subspan(kLengthBytes + text.size());
  const Json header = parse_json(text, where);
  if (!header.is_object()) fail("{}: the header is no JSON object", where);
  SafetensorsHeader result;
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") {
      result.tensors.push_back(parse_entry(name, entry, data, where));
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
  check_coverage(result.tensors, data, where);
  return result;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  SafetensorsHeader header = parse_safetensors(file_.bytes(), path.string());
  tensors_ = std::move(header.tensors);
  metadata_ = std::move(header.metadata);
}

}  // namespace aqhost
