#include "checkpoint/npy.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "stored_file.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

std::string npy(std::string header, std::string_view data, char version = 1) {
  header += '\n';
  std::string file = std::string("\x93NUMPY") + version + '\0';
  file += static_cast<char>(header.size() % 256);
  file += static_cast<char>(header.size() / 256);
  if (version > 1) file += std::string(2, '\0');
  return file + header + std::string(data);
}

std::string dictionary(std::string_view descr, std::string_view shape,
                       std::string_view fortran = "False") {
  return fmt::format("{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}", descr, fortran,
                     shape);
}

StoredTensor parse_npy(const std::string& file, const std::string& where = "f") {
  return aqhost::parse_npy(bytes_of(file), static_cast<int64_t>(file.size()), where);
}

doctest::String refused_npy(const std::string& file) {
  try {
    parse_npy(file, "ids.npy");
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST_CASE("an array is read: type, shape, bytes, in every version and number of dimensions") {
  const std::string data = "012345670123456701234567";
  for (const char version : {'\1', '\2', '\3'}) {
    const std::string file = npy(dictionary("<i4", "(3, 2)"), data, version);
    const StoredTensor array = parse_npy(file);
    CHECK(array.dtype == DType::kI32);
    CHECK(array.shape == std::vector<int64_t>{3, 2});
    CHECK(array.size == 24);
    CHECK(array.offset == static_cast<int64_t>(file.size()) - 24);
  }
  const std::string one = npy(dictionary("<i8", "(3,)"), data);
  CHECK(parse_npy(one).shape == std::vector<int64_t>{3});
  const std::string scalar = npy(dictionary("|u1", "()"), "0");
  CHECK(parse_npy(scalar).shape.empty());
  const std::string none = npy(dictionary("<u2", "(0, 7)"), "");
  CHECK(parse_npy(none).numel() == 0);
}

TEST_CASE("a file is read: the array alone, however long the header is") {
  const TempFolder folder;
  write_file(folder / "short.npy", npy(dictionary("|u1", "(3,)"), "abc"));
  write_file(folder / "long.npy", npy(dictionary("|u1", "(3,)") + std::string(4000, ' '), "abc"));
  for (const char* name : {"short.npy", "long.npy"}) {
    const LoadedTensor array = read_npy(folder / name);
    CHECK(array.shape == std::vector<int64_t>{3});
    REQUIRE(array.bytes.size() == 3);
    CHECK(array.bytes[2] == std::byte{'c'});
  }
}

TEST_CASE("what is no array of numbers in order is refused, and says what came") {
  CHECK(refused_npy("PK\x03\x04 not this") == "ids.npy: does not begin as a .npy file does");
  CHECK(refused_npy(npy(dictionary("<i4", "(1,)"), "0123", 4)) ==
        "ids.npy: .npy version 4, expected 1, 2 or 3");
  CHECK(refused_npy(npy(dictionary("<i4", "(1,)"), "").substr(0, 40)) ==
        "ids.npy: truncated in the header");
  CHECK(refused_npy(npy(dictionary(">i4", "(1,)"), "0123")) ==
        doctest::Contains("elements are big-endian"));
  CHECK(refused_npy(npy(dictionary("<U5", "(1,)"), "0123")) ==
        doctest::Contains("elements of type 'U5', expected numbers"));
  CHECK(refused_npy(npy("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,), }",
                        "0123")) == doctest::Contains("not that of an array of numbers"));
  CHECK(refused_npy(npy(dictionary("<i4", "(1, 1)", "True"), "0123")) ==
        doctest::Contains("Fortran order"));
  CHECK(refused_npy(npy(dictionary("<i4", "(2,)"), "0123")) ==
        "ids.npy: shape (2) takes 8 bytes, the file has 4");
  CHECK(refused_npy(npy(dictionary("<i4", "(4611686018427387904, 4)"), "0123")) ==
        doctest::Contains("is too large"));
  CHECK(refused_npy(npy(dictionary("<i4", "(99999999999999999999,)"), "0123")) ==
        doctest::Contains("is too large"));
}

}  // namespace
}  // namespace aqhost
