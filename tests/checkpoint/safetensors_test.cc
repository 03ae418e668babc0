#include "checkpoint/safetensors.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "stored_file.h"

namespace aqhost {
namespace {

SafetensorsHeader parse_header(std::string_view file) {
  return parse_safetensors(bytes_of(file), static_cast<int64_t>(file.size()), "f");
}

/// The message with which a header over 8 bytes of data is refused.
doctest::String refused_header(std::string_view header) {
  const std::string file = stored_file(header, "01234567");
  try {
    parse_header(file);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

/// A header of one tensor "a", with one field written as given.
std::string with(std::string_view field, std::string_view value) {
  std::string dtype = R"("F32")", shape = "[2]", offsets = "[0,8]";
  (field == "dtype" ? dtype : field == "shape" ? shape : offsets) = value;
  return fmt::format(R"({{"a":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

std::string entry(std::string_view name, std::string_view dtype, std::string_view shape, int begin,
                  int end) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", name, dtype,
                     shape, begin, end);
}

TEST_CASE("a header is read: names sorted, types, shapes, bytes, metadata") {
  const std::string file = stored_file(R"({"__metadata__":{"format":"pt","n":"1"},)" +
                                           entry("b", "BF16", "[2,1]", 0, 4) + "," +
                                           entry("a", "F32", "[]", 4, 8) + "}  ",
                                       "01234567");
  const SafetensorsHeader header = parse_header(file);
  REQUIRE(header.tensors.size() == 2);
  const StoredTensor& a = header.tensors[0];
  const StoredTensor& b = header.tensors[1];
  CHECK(a.name == "a");
  CHECK(a.dtype == DType::kF32);
  CHECK(a.shape.empty());
  CHECK(a.numel() == 1);
  CHECK(a.size == 4);
  CHECK(file.substr(static_cast<std::size_t>(a.offset)) == "4567");
  CHECK(b.shape == std::vector<int64_t>{2, 1});
  CHECK(b.offset == a.offset - 4);
  CHECK(header.metadata == std::map<std::string, std::string>{{"format", "pt"}, {"n", "1"}});
}

TEST_CASE("every element type has its size and goes by the name it is parsed from") {
  for (int i = 0; i <= static_cast<int>(DType::kF64); i++) {
    const auto type = static_cast<DType>(i);
    CAPTURE(dtype_name(type));
    CHECK(parse_dtype(dtype_name(type)) == type);
    const auto n = 8 / dtype_size(type);
    const std::string file = stored_file(
        "{" + entry("a", dtype_name(type), fmt::format("[{}]", n), 0, 8) + "}", "01234567");
    CHECK(parse_header(file).tensors[0].numel() == n);
  }
  CHECK(!parse_dtype("bf16"));
  CHECK(!parse_dtype(""));
}

TEST_CASE("a file without tensors, and tensors without elements, are read") {
  CHECK(parse_header(stored_file("{}", "")).tensors.empty());
  const std::string file = stored_file("{" + entry("none", "F32", "[0,3]", 0, 0) + "," +
                                           entry("all", "U8", "[8]", 0, 8) + "," +
                                           entry("tail", "F16", "[4,0]", 8, 8) + "}",
                                       "01234567");
  const SafetensorsHeader header = parse_header(file);
  REQUIRE(header.tensors.size() == 3);
  CHECK(header.tensors[1].name == "none");
  CHECK(header.tensors[1].numel() == 0);
  CHECK(header.tensors[1].size == 0);
}

TEST_CASE("a length that cannot be is refused") {
  CHECK_THROWS_WITH_AS(parse_header(""),
                       "f: 0 bytes, too short for a safetensors file (8-byte header length)",
                       Error);
  CHECK_THROWS_WITH_AS(parse_header(std::string(7, '\0')), doctest::Contains("7 bytes, too short"),
                       Error);
  std::string file = stored_file("{}", "");
  file[0] = 3;
  CHECK_THROWS_WITH_AS(
      parse_header(file),
      "f: header length 3, but the file has 10 bytes: truncated, download it again", Error);
  file[4] = 1;
  CHECK_THROWS_WITH_AS(parse_header(file), doctest::Contains("expected at most 100000000"), Error);
  for (int i = 0; i < 8; i++) file[static_cast<std::size_t>(i)] = '\xff';
  CHECK_THROWS_WITH_AS(parse_header(file), doctest::Contains("header length 18446744073709551615"),
                       Error);
}

TEST_CASE("a header that is no JSON object of objects is refused") {
  using doctest::Contains;
  CHECK(refused_header("") == Contains("f: header length 0, expected at least 2 bytes of JSON"));
  CHECK(refused_header("{\"a\":") == Contains("f: not valid JSON"));
  CHECK(refused_header("{\"\xff\":{}}") == Contains("f: not valid JSON"));
  CHECK(refused_header("[]") == "f: the header is no JSON object");
  CHECK(refused_header(R"({"a":[1]})") == "f: tensor a is array, expected an object");
  CHECK(refused_header(R"({"__metadata__":[]})") == "f: __metadata__ is no object");
  CHECK(refused_header(R"({"__metadata__":{"n":1}})") == "f: __metadata__.n is no string");
  CHECK(refused_header("{" + entry("a", "U8", "[8]", 0, 8) + "," + entry("a", "U8", "[8]", 0, 8) +
                       "}") == "f: key \"a\" appears twice");
  CHECK(refused_header(std::string(70, '[') + std::string(70, ']')) == Contains("nested deeper"));
}

TEST_CASE("each field of a tensor is checked, and named") {
  using doctest::Contains;
  CHECK(refused_header(with("dtype", R"("F33")")) ==
        "f: tensor a.dtype is \"F33\", which is not known");
  CHECK(refused_header(with("dtype", "3")) == "f: tensor a.dtype is 3, which is not known");
  CHECK(refused_header(with("shape", "2")) == "f: tensor a.shape is 2, expected an array");
  CHECK(refused_header(with("shape", "[-2]")) ==
        "f: tensor a.shape is -2, expected a non-negative integer");
  CHECK(refused_header(with("shape", "[2.0]")) == Contains("expected a non-negative integer"));
  CHECK(refused_header(with("shape", "[null]")) == Contains("expected a non-negative integer"));
  CHECK(refused_header(with("shape", "[9223372036854775808]")) ==
        Contains("expected a non-negative integer"));
  CHECK(refused_header(with("shape", "[4294967296,4294967296]")) ==
        "f: tensor a.shape [4294967296, 4294967296] is too large");
  CHECK(refused_header(with("shape", "[3]")) ==
        "f: tensor a: F32 [3] takes 12 bytes, data_offsets [0, 8] have 8");
  CHECK(refused_header(with("data_offsets", "[0]")) ==
        "f: tensor a.data_offsets is [0], expected [begin, end]");
  CHECK(refused_header(with("data_offsets", "{}")) == Contains("expected [begin, end]"));
  CHECK(refused_header(with("data_offsets", "[0,\"8\"]")) ==
        Contains("expected a non-negative integer"));
  CHECK(refused_header(with("data_offsets", "[8,0]")) ==
        "f: tensor a.data_offsets [8, 0] do not lie within the 8 bytes of data");
  CHECK(refused_header(with("data_offsets", "[0,9]")) ==
        "f: tensor a.data_offsets [0, 9] do not lie within the 8 bytes of data; the file may be "
        "truncated");
  CHECK(refused_header(with("data_offsets", "[4,8]")) == Contains("takes 8 bytes"));
  CHECK(refused_header(R"({"a":{"shape":[2],"data_offsets":[0,8]}})") ==
        "f: tensor a has no \"dtype\"");
  CHECK(refused_header(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})") ==
        "f: tensor a has no \"shape\"");
  CHECK(refused_header(R"({"a":{"dtype":"F32","shape":[2]}})") ==
        "f: tensor a has no \"data_offsets\"");
  CHECK(refused_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})") ==
        "f: tensor a has the unknown field \"x\"");
}

TEST_CASE("ranges that overlap or leave gaps are refused, with the tensors' names") {
  const auto two = [](std::string_view a, std::string_view b) {
    return "{" + std::string(a) + "," + std::string(b) + "}";
  };
  CHECK(refused_header(two(entry("a", "U8", "[5]", 0, 5), entry("b", "U8", "[4]", 4, 8))) ==
        "f: tensors a and b overlap");
  CHECK(refused_header(two(entry("a", "U8", "[8]", 0, 8), entry("b", "U8", "[8]", 0, 8))) ==
        "f: tensors a and b overlap");
  CHECK(refused_header(two(entry("a", "U8", "[8]", 0, 8), entry("b", "U8", "[0]", 4, 4))) ==
        "f: tensors a and b overlap");
  CHECK(refused_header(two(entry("a", "U8", "[3]", 0, 3), entry("b", "U8", "[4]", 4, 8))) ==
        "f: 1 bytes before tensor b belong to no tensor");
  CHECK(refused_header(two(entry("a", "U8", "[3]", 2, 5), entry("b", "U8", "[3]", 5, 8))) ==
        "f: 2 bytes before tensor a belong to no tensor");
  CHECK(refused_header(two(entry("a", "U8", "[3]", 0, 3), entry("b", "U8", "[3]", 3, 6))) ==
        "f: the last 2 bytes belong to no tensor");
  CHECK(refused_header("{}") == "f: the last 8 bytes belong to no tensor");
}

TEST_CASE("no prefix and no flipped bit of a real header makes it crash") {
  const std::string file = read_file(AQ_TESTS_DIR
                                     "/models/mixtral-tiny/"
                                     "model-00003-of-00003.safetensors");
  const std::size_t length =
      static_cast<unsigned char>(file[0]) + 256 * std::size_t{static_cast<unsigned char>(file[1])};
  int accepted = 0;
  for (std::size_t i = 0; i < length + 8; i += 7) {
    CHECK_THROWS_AS(parse_header(std::string_view(file).substr(0, i)), Error);
    std::string changed = file;
    changed[i] = static_cast<char>(changed[i] ^ (1 << (i % 8)));
    try {
      parse_header(changed);
      accepted++;  // a bit of a name
    } catch (const Error&) {
    }
  }
  CHECK(accepted < static_cast<int>(length / 7));
  CHECK_THROWS_AS(parse_header(std::string_view(file).substr(0, file.size() - 1)), Error);
}

}  // namespace
}  // namespace aqhost
