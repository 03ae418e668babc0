#include "base/file.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <array>
#include <vector>

#include "base/error.h"
#include "temp_folder.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

TEST_CASE("a file is written, replaced and read, with any bytes") {
  const TempFolder folder;
  const std::string bytes("a\0b\n\xff", 5);
  write_file(folder / "a", bytes);
  CHECK(read_file(folder / "a") == bytes);
  write_file(folder / "a", "");
  CHECK(read_file(folder / "a").empty());
  CHECK(std::distance(fs::directory_iterator(folder.path()), {}) == 1);  // no .part is left
}

TEST_CASE("an input file is read from any offset, also after it is moved") {
  const TempFolder folder;
  write_file(folder / "a", "xyz");
  write_file(folder / "empty", "");
  InputFile file(folder / "a");
  const InputFile moved(std::move(file));
  CHECK(moved.size() == 3);
  CHECK(moved.path() == folder / "a");
  std::array<std::byte, 2> bytes{};
  moved.read(1, bytes);
  CHECK(bytes[0] == std::byte{'y'});
  CHECK(bytes[1] == std::byte{'z'});
  CHECK(InputFile(folder / "empty").size() == 0);
}

TEST_CASE("reading a file that was truncated while open throws an Error that says where") {
  const TempFolder folder;
  write_file(folder / "a", std::string(10000, 'x'));
  const InputFile file(folder / "a");
  fs::resize_file(folder / "a", 5000);
  std::vector<std::byte> bytes(4000);
  file.read(1000, bytes);
  CHECK_THROWS_WITH_AS(file.read(1001, bytes, "tensor t"),
                       ((folder / "a").string() +
                        ": tensor t, offset 5000: the file ends here, it had 10000 bytes when it "
                        "was opened; has it been truncated?")
                           .c_str(),
                       Error);
}

TEST_CASE("a pipe is refused without waiting for its writer") {
  const TempFolder folder;
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH_AS(read_file(folder / "pipe"), doctest::Contains("not a regular file"), Error);
  CHECK_THROWS_WITH_AS(InputFile(folder / "pipe"), doctest::Contains("not a regular file"), Error);
}

TEST_CASE("the message recognises what a download left in place of a file") {
  using doctest::Contains;
  const auto recognised = [](std::string_view start) {
    return doctest::String(std::string(misplaced_file(start)).c_str());
  };
  CHECK(recognised("version https://git-lfs.github.com/spec/v1\noid sha256:0\n") ==
        Contains("Git LFS"));
  CHECK(recognised("<!DOCTYPE html><html>") == Contains("web page"));
  CHECK(recognised("\n <html lang=\"en\">") == Contains("web page"));
  CHECK(recognised(std::string_view("PK\x03\x04\0\0", 6)) == Contains("ZIP"));
  CHECK(recognised(std::string(100, '\0')) == Contains("zero bytes"));
  CHECK(recognised(std::string(8, '\0') + "{") == "");
  CHECK(recognised("{\"version\": 1}") == "");
  CHECK(recognised("") == "");
}

TEST_CASE("a copy has the file's bytes, and a failed copy leaves nothing") {
  const TempFolder folder;
  const std::string content(700000, 'c');
  write_file(folder / "a", content);
  aqhost::copy_file(folder / "a", folder / "b");
  CHECK(read_file(folder / "b") == content);
  CHECK_THROWS_WITH_AS(aqhost::copy_file(folder / "none", folder / "c"),
                       doctest::Contains("none: No such file or directory"), Error);
  CHECK(!fs::exists(folder / "c"));
  CHECK_THROWS_WITH_AS(aqhost::copy_file(folder / "a", folder / "b"),
                       doctest::Contains("b: File exists"), Error);
  CHECK(fs::exists(folder / "b"));
}

TEST_CASE("a folder is listed by name, and the message names one that cannot be read") {
  const TempFolder folder;
  for (const char* name : {"b", "a", "c"}) write_file(folder / name, "");
  std::string names;
  for (const auto& entry : list_folder(folder.path())) names += entry.path().filename().string();
  CHECK(names == "abc");
  CHECK_THROWS_WITH_AS(list_folder(folder / "none"),
                       doctest::Contains("none: No such file or directory"), Error);
}

TEST_CASE("the message names a file that cannot be written") {
  CHECK_THROWS_WITH_AS(write_file("no/such/folder/file", "x"),
                       "no/such/folder/file.part: No such file or directory", Error);
  CHECK_THROWS_WITH_AS(write_file("/dev/full/x", "x"), doctest::Contains("/dev/full/x.part: "),
                       Error);
}

TEST_CASE("a file that cannot be written leaves no part of it") {
  const TempFolder folder;
  fs::create_directory(folder / "a");
  write_file(folder / "a/b", "");
  CHECK_THROWS_WITH_AS(write_file(folder / "a", "x"), doctest::Contains("a: Is a directory"),
                       Error);
  CHECK(!fs::exists(folder / "a.part"));
}

}  // namespace
}  // namespace aqhost
