#include "checkpoint/reader.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <limits>

#include "base/error.h"
#include "stored_file.h"
#include "temp_folder.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

/// A file of float32 tensors with one element each, whose value is their place in the file.
std::string shard(const std::vector<std::string>& names) {
  std::string header = "{", data;
  for (std::size_t i = 0; i < names.size(); i++) {
    header += fmt::format(R"({}"{}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}})",
                          i == 0 ? "" : ",", names[i], 4 * i, 4 * i + 4);
    const auto value = static_cast<float>(i);
    data.append(reinterpret_cast<const char*>(&value), 4);
  }
  return stored_file(header + "}", data);
}

/// A checkpoint of two shards, which a test then damages.
class Checkpoint {
 public:
  Checkpoint() {
    write("config.json", R"({"model_type": "x"})");
    write("1.safetensors", shard({"a", "c"}));
    write("2.safetensors", shard({"b"}));
    index(R"("a":"1.safetensors","c":"1.safetensors","b":"2.safetensors")");
  }

  void write(const std::string& name, std::string_view content) const {
    write_file(folder_ / name, content);
  }
  void index(const std::string& map) const {
    write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":{" + map + "}}");
  }
  void remove(const std::string& name) const { fs::remove(folder_ / name); }
  const fs::path& path() const { return folder_.path(); }

  /// The message with which opening fails, less the folder's name.
  doctest::String refused() const {
    try {
      const Reader reader(path());
    } catch (const Error& e) {
      const std::string message = e.what();
      CHECK(message.starts_with(path().string()));
      return message.substr(path().string().size()).c_str();
    }
    return "accepted";
  }

 private:
  TempFolder folder_;
};

TEST_CASE("shards are read as one checkpoint, sorted by name") {
  const Checkpoint checkpoint;
  const Reader reader(checkpoint.path());
  CHECK(reader.config()["model_type"] == "x");
  CHECK(reader.directory() == checkpoint.path().string());
  REQUIRE(reader.tensors().size() == 3);
  CHECK(reader.tensors()[1].name == "b");
  REQUIRE(reader.find("c") != nullptr);
  CHECK(reader.find("c")->dtype == DType::kF32);
  CHECK(reader.bytes("c").size() == 4);
  CHECK(reader.find("") == nullptr);
  CHECK(reader.find("d") == nullptr);
  float value = -1;
  reader.read_f32("c", 0, {&value, 1});
  CHECK(value == 1);
  CHECK_THROWS_WITH_AS(reader.read_f32("d", 0, {&value, 1}),
                       (checkpoint.path().string() + ": there is no tensor d").c_str(), Error);
}

TEST_CASE("a part of a tensor is read from any element on, and nothing outside it") {
  const Checkpoint checkpoint;
  const std::vector<uint16_t> elements{0x3f80, 0x4000, 0x4040, 0x4080};  // 1 2 3 4
  const auto* begin = reinterpret_cast<const char*>(elements.data());
  checkpoint.write("model.safetensors",  // at an odd offset
                   stored_file(R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                               R"("t":{"dtype":"BF16","shape":[4],"data_offsets":[1,9]}})",
                               "x" + std::string(begin, 8)));
  const Reader reader(checkpoint.path());
  std::vector<float> out(2);
  reader.read_f32("t", 1, out);
  CHECK(out == std::vector<float>{2, 3});
  reader.read_f32("t", 4, {});
  CHECK_THROWS_WITH_AS(
      reader.read_f32("t", 3, out),
      (checkpoint.path() / "model.safetensors: tensor t: elements 3 to 5 of 4 were asked for")
          .c_str(),
      Error);
  CHECK_THROWS_AS(reader.read_f32("t", -1, out), Error);
  CHECK_THROWS_AS(reader.read_f32("t", 5, {}), Error);
}

TEST_CASE("a tensor longer than one read is read whole, each element in its place") {
  const Checkpoint checkpoint;
  std::vector<float> values(300'001);
  for (std::size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i);
  checkpoint.write(
      "model.safetensors",
      stored_file(R"({"t":{"dtype":"F32","shape":[300001],"data_offsets":[0,1200004]}})",
                  {reinterpret_cast<const char*>(values.data()), 1'200'004}));
  std::vector<float> out(values.size() - 7);
  Reader(checkpoint.path()).read_f32("t", 7, out);
  CHECK(std::equal(out.begin(), out.end(), values.begin() + 7));
  values[200'000] = std::numeric_limits<float>::infinity();
  checkpoint.write(
      "model.safetensors",
      stored_file(R"({"t":{"dtype":"F32","shape":[300001],"data_offsets":[0,1200004]}})",
                  {reinterpret_cast<const char*>(values.data()), 1'200'004}));
  CHECK_THROWS_WITH_AS(Reader(checkpoint.path()).read_f32("t", 7, out),
                       doctest::Contains("element 200000 is inf"), Error);
}

TEST_CASE("a shard that is truncated while it is open is an error with file, tensor and offset") {
  const Checkpoint checkpoint;
  const Reader reader(checkpoint.path());
  const fs::path shard = checkpoint.path() / "1.safetensors";
  fs::resize_file(shard, fs::file_size(shard) - 4);
  float value = 0;
  std::array<std::byte, 4> bytes{};
  const auto message = doctest::Contains("1.safetensors: tensor c, offset ");
  CHECK_THROWS_WITH_AS(reader.read_f32("c", 0, {&value, 1}), message, Error);
  CHECK_THROWS_WITH_AS(reader.read_stored("c", 0, bytes), message, Error);
  CHECK_THROWS_WITH_AS(reader.bytes("c"), message, Error);
  reader.read_f32("a", 0, {&value, 1});  // others are there still
}

TEST_CASE("what a download leaves in place of a shard is told") {
  const Checkpoint checkpoint;
  checkpoint.write("2.safetensors",
                   "version https://git-lfs.github.com/spec/v1\noid sha256:1234\n");
  CHECK(checkpoint.refused() == doctest::Contains("/2.safetensors: is a Git LFS pointer"));
  checkpoint.write("2.safetensors", "<!DOCTYPE html>\n<html></html>");
  CHECK(checkpoint.refused() == doctest::Contains("/2.safetensors: is a web page"));
  checkpoint.write("2.safetensors", "<html>");
  CHECK(checkpoint.refused() == doctest::Contains("/2.safetensors: is a web page"));
  for (const std::size_t bytes : {8, 63, 4096}) {
    checkpoint.write("2.safetensors", std::string(bytes, '\0'));
    CHECK(checkpoint.refused() == doctest::Contains("/2.safetensors: is filled with zero bytes"));
    CHECK(checkpoint.refused() == doctest::Contains("download it again"));
  }
  checkpoint.write("2.safetensors", std::string(8, '\0') + "{}");
  CHECK(checkpoint.refused() == doctest::Contains("/2.safetensors: header length 0, expected at"));
  checkpoint.write("model.safetensors.index.json", std::string(4096, '\0'));
  CHECK(checkpoint.refused() == doctest::Contains("index.json: is filled with zero bytes"));
  checkpoint.write("model.safetensors.index.json", "version https://git-lfs.github.com/spec/v1\n");
  CHECK(checkpoint.refused() == doctest::Contains("index.json: is a Git LFS pointer"));
  checkpoint.write("config.json", "version https://git-lfs.github.com/spec/v1\n");
  CHECK(checkpoint.refused() == doctest::Contains("config.json: is a Git LFS pointer"));
}

TEST_CASE("a bad value is reported with the shard it is in") {
  const Checkpoint checkpoint;
  std::string file = shard({"b"});
  file[file.size() - 2] = '\x80';  // inf
  file[file.size() - 1] = '\x7f';
  checkpoint.write("2.safetensors", file);
  const Reader reader(checkpoint.path());
  float value = 0;
  CHECK_THROWS_WITH_AS(reader.read_f32("b", 0, {&value, 1}),
                       doctest::Contains("/2.safetensors: tensor b: element 0 is inf"), Error);
}

TEST_CASE("what is missing is named") {
  CHECK_THROWS_WITH_AS(Reader("no/such/folder"),
                       doctest::Contains("no/such/folder: no such folder"), Error);
  const Checkpoint checkpoint;
  checkpoint.remove("2.safetensors");
  CHECK(checkpoint.refused() ==
        ": shard 2.safetensors is missing; model.safetensors.index.json names it for 1 tensors, "
        "b first");
  checkpoint.remove("model.safetensors.index.json");
  CHECK(checkpoint.refused() == doctest::Contains("neither model.safetensors nor"));
  checkpoint.write("config.json", "[1]");
  CHECK(checkpoint.refused() == "/config.json: expected a JSON object");
  checkpoint.write("config.json", "{");
  CHECK(checkpoint.refused() == doctest::Contains("/config.json: not valid JSON"));
  checkpoint.remove("config.json");
  CHECK(checkpoint.refused() == "/config.json: No such file or directory");
}

TEST_CASE("an index that lies is refused") {
  const Checkpoint checkpoint;
  checkpoint.index(R"("a":"1.safetensors","c":"1.safetensors","b":"1.safetensors")");
  CHECK(checkpoint.refused() ==
        ": model.safetensors.index.json says that tensor b is in 1.safetensors, where it is not");
  checkpoint.index(R"("a":"1.safetensors","b":"2.safetensors")");
  CHECK(checkpoint.refused() ==
        ": 1.safetensors has tensor c, which model.safetensors.index.json does not list there");
  checkpoint.write("2.safetensors", shard({"a", "b"}));
  checkpoint.index(R"("a":"2.safetensors","c":"1.safetensors","b":"2.safetensors")");
  CHECK(checkpoint.refused() == doctest::Contains("1.safetensors has tensor a, which"));
}

TEST_CASE("an index without a map of file names is refused") {
  const Checkpoint checkpoint;
  for (const char* text : {"[]", "{}", R"({"weight_map":[]})", R"({"weight_map":"x"})"}) {
    checkpoint.write("model.safetensors.index.json", text);
    CHECK(checkpoint.refused() ==
          "/model.safetensors.index.json: weight_map is missing or no object");
  }
  checkpoint.index(R"("a":1)");
  CHECK(checkpoint.refused() ==
        "/model.safetensors.index.json: weight_map.a is 1, expected a file name");
}

TEST_CASE("an index cannot lead out of its folder") {
  const Checkpoint checkpoint;
  const fs::path outside = checkpoint.path().string() + "-outside.safetensors";
  write_file(outside, shard({"a"}));
  for (const std::string& name :
       {"../" + outside.filename().string(), outside.string(), std::string(".."), std::string("."),
        std::string(), std::string("sub/../1.safetensors"), std::string("a\\\\b")}) {
    CAPTURE(name);
    checkpoint.index("\"a\":\"" + name + "\"");
    CHECK(checkpoint.refused() == doctest::Contains("expected a file of the same folder"));
  }
  fs::remove(outside);
}

TEST_CASE("the single file comes before an index, as transformers has it") {
  const Checkpoint checkpoint;
  checkpoint.write("model.safetensors", shard({"only"}));
  const Reader reader(checkpoint.path());
  REQUIRE(reader.tensors().size() == 1);
  CHECK(reader.tensors()[0].name == "only");
}

}  // namespace
}  // namespace aqhost
