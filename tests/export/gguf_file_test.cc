#include "export/gguf_file.h"

#include <doctest/doctest.h>

#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "export/read_gguf.h"
#include "temp_folder.h"

namespace aqhost {

namespace fs = std::filesystem;

TEST_CASE("a file has its key-values and tensors in order, aligned, and appears when it is whole") {
  const TempFolder folder;
  const fs::path path = folder / "a.gguf";
  GgufMetadata metadata;
  metadata.text("t", "\u00fc");
  metadata.u32("u", 4000000000);
  metadata.f32("f", 0.5F);
  metadata.flag("b", true);
  metadata.texts("list", {"a", ""});
  metadata.integers("i", {-1, 2});
  const std::vector<GgufTensorInfo> tensors{{"x", GgufType::kF32, {3}},
                                            {"y", GgufType::kQ4_0, {2, 5, 64}}};
  const std::vector<float> x{1, 2, 3};
  const std::vector<std::byte> y(2 * 5 * 36, std::byte{7});
  {
    const GgufWriter abandoned(path, metadata, tensors, false);
    CHECK(fs::exists(folder / "a.gguf.part"));
  }
  CHECK(fs::is_empty(folder.path()));
  {
    GgufWriter writer(path, metadata, tensors, false);
    writer.write(1, std::span(y).first(100));
    CHECK(contains(message_of([&] { writer.finish(); }), "x lacks 12 bytes"));
    writer.write(0, std::as_bytes(std::span(x)));
    writer.write(1, std::span(y).subspan(100));
    CHECK(contains(message_of([&] { writer.write(0, std::span(y).first(1)); }), "1 bytes more"));
    CHECK(!fs::exists(path));
    writer.finish();
    CHECK(static_cast<int64_t>(fs::file_size(path)) == writer.file_bytes());
  }
  const ReadGguf file(read_file(path));
  CHECK(file.keys == std::vector<std::string>{"t", "u", "f", "b", "list", "i"});
  CHECK(file.value.at("t") == "\u00fc");
  CHECK(file.value.at("u") == 4000000000U);
  CHECK(file.value.at("f") == 0.5);
  CHECK(file.value.at("b") == true);
  CHECK(file.value.at("list") == Json{"a", ""});
  CHECK(file.value.at("i") == Json{-1, 2});
  CHECK(file.tensor.at("y").dims == std::vector<int64_t>{64, 5, 2});
  CHECK(file.tensor.at("y").type == 2);
  CHECK(file.tensor.at("x").offset == 0);
  CHECK(file.tensor.at("y").offset == 32);
  CHECK(file.size() == file.data + 32 + 384);
  CHECK(std::memcmp(file.bytes(file.tensor.at("x"), 12).data(), x.data(), 12) == 0);
  CHECK(file.bytes(file.tensor.at("y"), y.size()) == std::string(y.size(), '\7'));

  CHECK(
      contains(message_of([&] { GgufWriter(path, metadata, tensors, false); }), "exists already"));
  CHECK(contains(message_of([&] { GgufWriter(folder / "no/a", metadata, tensors, true); }),
                 "No such file"));
  CHECK(contains(message_of([&] {
                   GgufWriter(path, metadata, {{std::string(64, 'n'), GgufType::kF32, {1}}}, true);
                 }),
                 "has 64 bytes"));
  CHECK(fs::exists(path));
  CHECK(!fs::exists(folder / "a.gguf.part"));
}

TEST_CASE("a model in several files, which appear together or not at all") {
  const TempFolder folder;
  GgufMetadata metadata;
  metadata.text("t", std::string(1000, 'x'));
  std::vector<GgufTensorInfo> tensors;
  for (const int64_t size : {300, 300, 5000, 10, 10})
    tensors.push_back({fmt::format("x{}", tensors.size()), GgufType::kF32, {size}});
  const auto write = [&](GgufFiles& files) {
    for (std::size_t i = 0; i < tensors.size(); i++) {
      const std::vector<float> values(static_cast<std::size_t>(tensors[i].shape[0]),
                                      static_cast<float>(i));
      files.write(i, std::as_bytes(std::span(values)));
    }
  };
  constexpr int64_t kLimit = 3000;
  {
    GgufFiles files(folder / "a.gguf", metadata, tensors, kLimit, false);
    write(files);
    fs::create_directories(folder / "a-00003-of-00004.gguf/in the way");
    CHECK(contains(message_of([&] { files.finish(); }), "a-00003-of-00004.gguf"));
    fs::remove_all(folder / "a-00003-of-00004.gguf");
  }
  CHECK(fs::is_empty(folder.path()));
  GgufFiles files(folder / "a.gguf", metadata, tensors, kLimit, false);
  write(files);
  files.finish();
  CHECK(files.paths().size() == 4);
  const std::vector<std::vector<std::string>> expected{{"x0"}, {"x1"}, {"x2"}, {"x3", "x4"}};
  int64_t bytes = 0;
  for (std::size_t i = 0; i < expected.size(); i++) {
    const fs::path path = folder / fmt::format("a-{:05}-of-00004.gguf", i + 1);
    CHECK(files.paths()[i] == path);
    const ReadGguf file(read_file(path));
    bytes += static_cast<int64_t>(file.size());
    CHECK((i == 2 || file.size() <= kLimit));
    CHECK(file.value.at("split.no") == i);
    CHECK(file.value.at("split.count") == 4);
    CHECK(file.value.at("split.tensors.count") == 5);
    CHECK(file.value.contains("t") == (i == 0));
    REQUIRE(file.tensor.size() == expected[i].size());
    for (const std::string& name : expected[i]) {
      float first = -1;
      std::memcpy(&first, file.bytes(file.tensor.at(name), 4).data(), 4);
      CHECK(first == static_cast<float>(name[1] - '0'));
    }
  }
  CHECK(files.bytes() == bytes);
  const GgufFiles one(folder / "b.gguf", metadata, tensors, 1 << 20, false);
  CHECK(one.paths() == std::vector<fs::path>{folder / "b.gguf"});
}

}  // namespace aqhost
