#include <doctest/doctest.h>

#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/nearest.h"
#include "base/progress.h"

namespace aqhost {
namespace fs = std::filesystem;

TEST_CASE("JSON: repeated keys, depth and syntax are refused with the file's name") {
  CHECK(parse_json(R"({"a": {"b": 1}, "c": {"b": 2}})", "x.json")["c"]["b"] == 2);
  CHECK_THROWS_WITH_AS(parse_json(R"({"a": 1, "a": 2})", "x.json"),
                       "x.json: key \"a\" appears twice", Error);
  CHECK_THROWS_WITH_AS(parse_json("{\"a\": ", "x.json"),
                       doctest::Contains("x.json: not valid JSON"), Error);
  CHECK_THROWS_AS(parse_json(std::string(100, '[') + std::string(100, ']'), "x"), Error);
}

TEST_CASE("nearest_name finds a misspelling and nothing far away") {
  const std::vector<std::string> names{"int4", "mxfp4", "group_size"};
  CHECK(nearest_name("groupsize", names) == "group_size");
  CHECK(nearest_name("entirely-else", names).empty());
  CHECK(did_you_mean("zzzzzzzzzzz", names) == ", known: int4, mxfp4, group_size");
}

TEST_CASE("StagedDirectory: all or nothing") {
  const fs::path root = fs::temp_directory_path() / "aqhost-base-test";
  fs::remove_all(root);
  fs::create_directory(root);
  {
    StagedDirectory staged(root / "out", false);
    write_file(staged.path() / "a", "1");
  }
  CHECK(fs::is_empty(root));
  {
    StagedDirectory staged(root / "out/", false);
    write_file(staged.path() / "a", "1");
    staged.commit();
  }
  CHECK(read_file(root / "out" / "a") == "1");
  CHECK_THROWS_AS(StagedDirectory(root / "out", false), Error);
  {
    StagedDirectory staged(root / "out", true);
    write_file(staged.path() / "b", "2");
    staged.commit();
  }
  CHECK(!fs::exists(root / "out" / "a"));
  fs::remove_all(root);
}

TEST_CASE("files that are missing, or folders, are named") {
  CHECK_THROWS_WITH_AS(read_file("no/such/file"), "no/such/file: No such file or directory", Error);
  CHECK_THROWS_AS(MappedFile(fs::temp_directory_path()), Error);
}

TEST_CASE("durations") {
  CHECK(format_duration(41.2) == "41 s");
  CHECK(format_duration(185) == "3 min 05 s");
  CHECK(format_duration(7620) == "2 h 07 min");
}

}  // namespace aqhost
