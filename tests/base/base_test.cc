#include <doctest/doctest.h>

#include <chrono>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/nearest.h"
#include "base/progress.h"

namespace aqhost {
namespace fs = std::filesystem;

TEST_CASE(
    "JSON: repeated keys, deep nesting and wrong syntax are refused, and the message names the "
    "file") {
  CHECK(parse_json(R"({"a": {"b": 1}, "c": {"b": 2}})", "x.json")["c"]["b"] == 2);
  CHECK_THROWS_WITH_AS(parse_json(R"({"a": 1, "a": 2})", "x.json"),
                       "x.json: key \"a\" appears twice", Error);
  CHECK_THROWS_WITH_AS(parse_json("{\"a\": ", "x.json"),
                       doctest::Contains("x.json: not valid JSON"), Error);
  CHECK_THROWS_AS(parse_json(std::string(100, '[') + std::string(100, ']'), "x"), Error);
}

TEST_CASE("JSON: a file of a hundred thousand objects is read quickly") {
  std::string text = "{";
  for (int i = 0; i < 100'000; i++)
    text += "\"model.layers.0.mlp.experts." + std::to_string(i) + "\": {\"shape\": [1, 2]},";
  text += "\"last\": {}}";
  const auto start = std::chrono::steady_clock::now();
  CHECK(parse_json(text, "x.json").size() == 100'001);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  CHECK(took.count() <
        20);  // more than a minute if the end of each object walks through the others
}

TEST_CASE("JSON text replaces bytes that are not UTF-8, and does not throw") {
  const Json json{{"name", "caf\xe9.txt"}, {"n", 1}};
  CHECK(to_text(json) == "{\"n\":1,\"name\":\"caf\xef\xbf\xbd.txt\"}");
  CHECK(to_text(Json{{"n", 1}}, 2) == "{\n  \"n\": 1\n}");
}

TEST_CASE("JSON: the message recognises what a download left in place of a file") {
  CHECK_THROWS_WITH_AS(parse_json("version https://git-lfs.github.com/spec/v1\n", "x.json"),
                       doctest::Contains("x.json: is a Git LFS pointer"), Error);
  CHECK_THROWS_WITH_AS(parse_json("<!DOCTYPE html>", "x.json"),
                       doctest::Contains("x.json: is a web page"), Error);
}

TEST_CASE("nearest_name finds misspellings and no other names") {
  const std::vector<std::string> names{"int4", "mxfp4", "group_size"};
  CHECK(nearest_name("groupsize", names) == "group_size");
  CHECK(nearest_name("entirely-else", names).empty());
  CHECK(did_you_mean("zzzzzzzzzzz", names) == ", known: int4, mxfp4, group_size");
}

TEST_CASE("the message names a file that is missing or is a folder") {
  CHECK_THROWS_WITH_AS(read_file("no/such/file"), "no/such/file: No such file or directory", Error);
  CHECK_THROWS_AS(InputFile(fs::temp_directory_path()), Error);
}

TEST_CASE("a progress line has rate and remaining time once they can be estimated") {
  CHECK(progress_line("quantizing", 42e6, 100e6, "weights", 14, "layer 3") ==
        "quantizing  42 %, 3.0 M weights/s, 19 s left  layer 3");
  CHECK(progress_line("evaluating", 3, 4, "layers", 60, "layer 2") ==
        "evaluating  75 %, 0.1 layers/s, 20 s left  layer 2");
  CHECK(progress_line("x", 1, 100, "weights", 60, "a") == "x   1 %  a");
  CHECK(progress_line("x", 50, 100, "weights", 0.1, "a") == "x  50 %  a");
  CHECK(progress_line("x", 0, 0, "weights", 1, "a") == "x   0 %  a");
  CHECK(progress_line("x", 101, 100, "k", 1, "a") == "x 100 %, 101 k/s, 0.0 s left  a");
  // 40 were finished before; and the time that is left is known better
  CHECK(progress_line("x", 60, 100, "k", 10, "a", 40) == "x  60 %, 2.0 k/s, 20 s left  a");
  CHECK(progress_line("x", 60, 100, "k", 10, "a", 40, 7) == "x  60 %, 2.0 k/s, 7.0 s left  a");
  CHECK(progress_line("x", 40, 100, "k", 10, "a", 40, 7) == "x  40 %, 7.0 s left  a");
}

TEST_CASE("durations") {
  CHECK(format_duration(0.42) == "0.4 s");
  CHECK(format_duration(9.99) == "10 s");
  CHECK(format_duration(41.2) == "41 s");
  CHECK(format_duration(185) == "3 min 05 s");
  CHECK(format_duration(7620) == "2 h 07 min");
}

}  // namespace aqhost
