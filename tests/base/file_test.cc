#include "base/file.h"

#include <doctest/doctest.h>

#include <fstream>

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

TEST_CASE("a mapped file is its bytes, an empty one an empty span, and moves keep it") {
  const TempFolder folder;
  write_file(folder / "a", "xyz");
  write_file(folder / "empty", "");
  MappedFile file(folder / "a");
  const MappedFile moved(std::move(file));
  REQUIRE(moved.bytes().size() == 3);
  CHECK(moved.bytes()[2] == std::byte{'z'});
  CHECK(moved.path() == folder / "a");
  CHECK(MappedFile(folder / "empty").bytes().empty());
}

TEST_CASE("what cannot be written is named") {
  CHECK_THROWS_WITH_AS(write_file("no/such/folder/file", "x"),
                       "no/such/folder/file.part: No such file or directory", Error);
  CHECK_THROWS_WITH_AS(write_file("/dev/full/x", "x"), doctest::Contains("/dev/full/x.part: "),
                       Error);
}

TEST_CASE("a staged folder becomes its target on commit and is gone otherwise") {
  const TempFolder root;
  {
    const StagedDirectory staged(root / "out", false);
    write_file(staged.path() / "a", "1");
  }
  CHECK(fs::is_empty(root.path()));
  {
    StagedDirectory staged(root / "new/sub/out/", false);  // parents are made
    write_file(staged.path() / "a", "1");
    CHECK(!fs::exists(root / "new/sub/out"));
    staged.commit();
  }
  CHECK(read_file(root / "new/sub/out/a") == "1");
}

TEST_CASE("a target that exists is refused, or replaced whole where that is asked for") {
  const TempFolder root;
  fs::create_directory(root / "out");
  write_file(root / "out/a", "1");
  CHECK_THROWS_WITH_AS(StagedDirectory(root / "out", false),
                       doctest::Contains("already exists; choose another folder"), Error);
  {
    const StagedDirectory staged(root / "out", true);
    write_file(staged.path() / "b", "2");
  }
  CHECK(read_file(root / "out/a") == "1");  // not committed
  StagedDirectory staged(root / "out", true);
  write_file(staged.path() / "b", "2");
  staged.commit();
  CHECK(!fs::exists(root / "out/a"));
  CHECK(read_file(root / "out/b") == "2");
  CHECK(std::distance(fs::directory_iterator(root.path()), {}) == 1);
}

TEST_CASE("what a killed run left is not in the way, and not touched") {
  const TempFolder root;
  fs::create_directory(root / "out.part-1");
  write_file(root / "out.part-1/a", "1");
  StagedDirectory staged(root / "out", false);
  CHECK(fs::is_empty(staged.path()));
  staged.commit();
  CHECK(fs::is_empty(root / "out"));
  CHECK(read_file(root / "out.part-1/a") == "1");
}

TEST_CASE("a target that cannot be made is named") {
  const TempFolder root;
  write_file(root / "file", "");
  CHECK_THROWS_WITH_AS(StagedDirectory(root / "file/out", false),
                       doctest::Contains("file/out: cannot be made: Not a directory"), Error);
}

TEST_CASE("a target that appeared meanwhile is not overwritten") {
  const TempFolder root;
  StagedDirectory staged(root / "out", false);
  fs::create_directory(root / "out");
  write_file(root / "out/theirs", "");
  CHECK_THROWS_WITH_AS(staged.commit(), doctest::Contains("out: cannot be put in place: "), Error);
  CHECK(fs::exists(root / "out/theirs"));
}

}  // namespace
}  // namespace aqhost
