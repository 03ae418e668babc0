#include "checkpoint/npy.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <regex>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kMaximumNpyHeader =
    kNpyHeader - 12;  // NumPy's own headers for plain arrays have 118 bytes

/// NumPy's kind and size of an element. A character for the byte order precedes them.
constexpr std::array<std::pair<std::string_view, DType>, 12> kNumpyTypes{{{"b1", DType::kBool},
                                                                          {"u1", DType::kU8},
                                                                          {"i1", DType::kI8},
                                                                          {"u2", DType::kU16},
                                                                          {"i2", DType::kI16},
                                                                          {"u4", DType::kU32},
                                                                          {"i4", DType::kI32},
                                                                          {"u8", DType::kU64},
                                                                          {"i8", DType::kI64},
                                                                          {"f2", DType::kF16},
                                                                          {"f4", DType::kF32},
                                                                          {"f8", DType::kF64}}};

std::size_t little_endian(std::string_view bytes) {
  std::size_t n = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) n = n << 8 | static_cast<unsigned char>(bytes[i]);
  return n;
}

/// The dictionary, which follows the magic, the version and the length (2 bytes in version 1, 4 in
/// later versions).
std::string_view header_of(std::string_view file, const std::string& where) {
  const std::size_t version_at = kMagic.size();
  if (!file.starts_with(kMagic) || file.size() < version_at + 2)
    fail("{}: does not begin as a .npy file does", where);
  const int version = static_cast<unsigned char>(file[version_at]);
  if (version < 1 || version > 3) fail("{}: .npy version {}, expected 1, 2 or 3", where, version);
  const std::size_t length_bytes = version == 1 ? 2 : 4, begin = version_at + 2 + length_bytes;
  if (file.size() < begin) fail("{}: truncated in the header", where);
  const std::size_t length = little_endian(file.substr(version_at + 2, length_bytes));
  if (length > kMaximumNpyHeader)
    fail("{}: a header of {} bytes, expected at most {}: a plain array", where, length,
         kMaximumNpyHeader);
  if (length > file.size() - begin) fail("{}: truncated in the header", where);
  return file.substr(begin, length);
}

DType type_of(const std::string& order, const std::string& type, const std::string& where) {
  if (order == ">") fail("{}: elements are big-endian, save them with .astype('<i4')", where);
  const auto* known = std::find_if(kNumpyTypes.begin(), kNumpyTypes.end(),
                                   [&](const auto& entry) { return entry.first == type; });
  if (known == kNumpyTypes.end())
    fail("{}: elements of type '{}', expected numbers, as '<i4'", where, type);
  return known->second;
}

}  // namespace

StoredTensor parse_npy(std::span<const std::byte> start, int64_t file_size,
                       const std::string& where) {
  const std::string_view file(reinterpret_cast<const char*>(start.data()), start.size());
  const std::string_view header = header_of(file, where);
  static const std::regex pattern(R"(\{'descr': '([<>|=])(\w+)', 'fortran_order': (True|False), )"
                                  R"('shape': \(((?:\d+(?:, \d+)*)?),?\),? *\}\s*)");
  std::match_results<std::string_view::const_iterator> match;
  if (!std::regex_match(header.begin(), header.end(), match, pattern))
    fail("{}: the header is not that of an array of numbers", where);
  StoredTensor array;
  array.dtype = type_of(match[1], match[2], where);
  if (match[3] == "True")
    fail("{}: is in Fortran order, save it with numpy.ascontiguousarray()", where);
  int64_t size = dtype_size(array.dtype);
  const std::string shape = match[4];
  const char* const end = shape.data() + shape.size();
  for (const char* at = shape.data(); at < end;) {
    int64_t& d = array.shape.emplace_back();
    const auto number = std::from_chars(at, end, d);
    if (number.ec != std::errc() || __builtin_mul_overflow(size, d, &size))
      fail("{}: shape ({}) is too large", where, shape);
    at = number.ptr == end ? end : number.ptr + 2;  // skips ", "
  }
  array.offset = header.data() - file.data() + static_cast<int64_t>(header.size());
  array.size = size;
  if (size != file_size - array.offset)
    fail("{}: shape ({}) takes {} bytes, the file has {}", where, shape, size,
         file_size - array.offset);
  return array;
}

LoadedTensor read_npy(const std::filesystem::path& path) {
  const InputFile file(path);
  std::vector<std::byte> start(std::min(kNpyHeader, static_cast<std::size_t>(file.size())));
  file.read(0, start);
  const StoredTensor array = parse_npy(start, file.size(), path.string());
  LoadedTensor loaded{array, std::vector<std::byte>(static_cast<std::size_t>(array.size))};
  file.read(array.offset, loaded.bytes);
  return loaded;
}

}  // namespace aqhost
