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

TEST_CASE("a file is written and read whole, with any bytes, and replaced") {
  const TempFolder folder;
  const std::string bytes("a\0b\n\xff", 5);
  write_file(folder / "a", bytes);
  CHECK(read_file(folder / "a") == bytes);
  write_file(folder / "a", "");
  CHECK(read_file(folder / "a").empty());
  CHECK(std::distance(fs::directory_iterator(folder.path()), {}) == 1);  // no part left
}

TEST_CASE("an input file is read from any offset on, and moves keep it") {
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

TEST_CASE("a file that is truncated while it is open is an error that says where") {
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

TEST_CASE("a pipe is refused and not waited for") {
  const TempFolder folder;
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH_AS(read_file(folder / "pipe"), doctest::Contains("not a regular file"), Error);
  CHECK_THROWS_WITH_AS(InputFile(folder / "pipe"), doctest::Contains("not a regular file"), Error);
}

TEST_CASE("what a download leaves in place of a file is told") {
  using doctest::Contains;
  const auto told = [](std::string_view start) {
    return doctest::String(std::string(misplaced_file(start)).c_str());
  };
  CHECK(told("version https://git-lfs.github.com/spec/v1\noid sha256:0\n") == Contains("Git LFS"));
  CHECK(told("<!DOCTYPE html><html>") == Contains("web page"));
  CHECK(told("\n <html lang=\"en\">") == Contains("web page"));
  CHECK(told(std::string_view("PK\x03\x04\0\0", 6)) == Contains("ZIP"));
  CHECK(told(std::string(100, '\0')) == Contains("zero bytes"));
  CHECK(told(std::string(8, '\0') + "{") == "");
  CHECK(told("{\"version\": 1}") == "");
  CHECK(told("") == "");
}

TEST_CASE("a copy is the file's bytes, and a failed one leaves nothing") {
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

TEST_CASE("a folder is listed by name, and one that cannot be read is named") {
  const TempFolder folder;
  for (const char* name : {"b", "a", "c"}) write_file(folder / name, "");
  std::string names;
  for (const auto& entry : list_folder(folder.path())) names += entry.path().filename().string();
  CHECK(names == "abc");
  CHECK_THROWS_WITH_AS(list_folder(folder / "none"),
                       doctest::Contains("none: No such file or directory"), Error);
}

TEST_CASE("what cannot be written is named") {
  CHECK_THROWS_WITH_AS(write_file("no/such/folder/file", "x"),
                       "no/such/folder/file.part: No such file or directory", Error);
  CHECK_THROWS_WITH_AS(write_file("/dev/full/x", "x"), doctest::Contains("/dev/full/x.part: "),
                       Error);
}

TEST_CASE("a file whose writing fails leaves no part of it") {
  const TempFolder folder;
  fs::create_directory(folder / "a");
  write_file(folder / "a/b", "");
  CHECK_THROWS_WITH_AS(write_file(folder / "a", "x"), doctest::Contains("a: Is a directory"),
                       Error);
  CHECK(!fs::exists(folder / "a.part"));
}

}  // namespace
}  // namespace aqhost
