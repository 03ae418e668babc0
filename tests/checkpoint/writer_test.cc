#include "checkpoint/writer.h"

#include <doctest/doctest.h>

#include <thread>

#include "base/error.h"
#include "checkpoint/reader.h"
#include "stored_file.h"
#include "temp_folder.h"
#include "whole_writer.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

constexpr int64_t kOneFile = int64_t{1} << 40;

std::vector<std::string> files(const TempFolder& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder.path()))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// Content of a tensor of `size` bytes, other for every name.
std::string content(const std::string& name, std::size_t size) {
  std::string bytes(size, '\0');
  for (std::size_t i = 0; i < size; i++) bytes[i] = static_cast<char>(name.back() + 31 * i);
  return bytes;
}

std::vector<TensorInfo> some_tensors() {
  return {{"a", DType::kBF16, {3, 5}}, {"b", DType::kU8, {7}},  {"c", DType::kF32, {2, 2}},
          {"d", DType::kI64, {1}},     {"e", DType::kF32, {0}}, {"f", DType::kF32, {}}};
}

std::size_t size_of(const TensorInfo& info) { return static_cast<std::size_t>(info.nbytes()); }

void write(WholeWriter& writer, const TensorInfo& info) {
  writer.write(info.name, bytes_of(content(info.name, size_of(info))));
}

TEST_CASE("what was written is what is read, and every tensor is aligned to its elements") {
  const TempFolder folder;
  write_file(folder / "config.json", "{}");
  WholeWriter writer(folder.path(), some_tensors(), kOneFile);
  for (const TensorInfo& info : some_tensors()) write(writer, info);
  CHECK(writer.finish() == 30 + 7 + 16 + 8 + 0 + 4);
  CHECK(files(folder) == std::vector<std::string>{"config.json", "model.safetensors"});

  const Reader reader(folder.path());
  REQUIRE(reader.tensors().size() == some_tensors().size());
  for (const TensorInfo& info : some_tensors()) {
    const TensorInfo* stored = reader.find(info.name);
    REQUIRE(stored != nullptr);
    CHECK(stored->dtype == info.dtype);
    CHECK(stored->shape == info.shape);
    const std::string expected = content(info.name, size_of(info));
    const std::vector<std::byte> bytes = reader.bytes(info.name);
    CHECK(std::equal(bytes.begin(), bytes.end(), bytes_of(expected).begin(),
                     bytes_of(expected).end()));
  }
  const SafetensorsFile file(folder / "model.safetensors");
  for (const StoredTensor& stored : file.tensors())
    CHECK(stored.offset % dtype_size(stored.dtype) == 0);
  CHECK(file.metadata().at("format") == "pt");
}

TEST_CASE("a tensor that is copied part after part is whole, and counts as written") {
  const TempFolder folder;
  write_file(folder / "config.json", "{}");
  constexpr std::size_t kSize = 9'000'001;  // three parts
  const std::string expected = content("a", kSize);
  WholeWriter writer(folder.path(), {{"a", DType::kU8, {kSize}}, {"b", DType::kU8, {0}}}, kOneFile);
  const auto read = [&](int64_t begin, std::span<std::byte> out) {
    std::memcpy(out.data(), expected.data() + begin, out.size());
  };
  writer.copy("a", read);
  CHECK_THROWS_WITH_AS(writer.copy("a", read), "tensor a is written twice", Error);
  CHECK_THROWS_WITH_AS(writer.copy("z", read), "tensor z was not announced to be written", Error);
  CHECK_THROWS_WITH_AS(writer.check_written(0), "tensor b was never written", Error);
  writer.copy("b", read);
  writer.finish();
  const std::vector<std::byte> bytes = Reader(folder.path()).bytes("a");
  CHECK(
      std::equal(bytes.begin(), bytes.end(), bytes_of(expected).begin(), bytes_of(expected).end()));
}

TEST_CASE("the files do not depend on the order or thread of writing") {
  const TempFolder first, second;
  WholeWriter one(first.path(), some_tensors(), 20), two(second.path(), some_tensors(), 20);
  const auto tensors = some_tensors();
  for (const TensorInfo& info : tensors) write(one, info);
  std::vector<std::thread> threads;
  for (auto it = tensors.rbegin(); it != tensors.rend(); ++it)
    threads.emplace_back([&two, &info = *it] { write(two, info); });
  for (std::thread& thread : threads) thread.join();
  one.finish();
  two.finish();
  REQUIRE(files(first) == files(second));
  for (const std::string& name : files(first))
    CHECK(read_file(first / name) == read_file(second / name));
}

TEST_CASE("shards are cut by size, a larger tensor has one to itself, and the index tells") {
  const TempFolder folder;
  write_file(folder / "config.json", "{}");
  const std::vector<TensorInfo> tensors{{"a", DType::kU8, {6}},
                                        {"b", DType::kU8, {4}},
                                        {"c", DType::kU8, {25}},
                                        {"d", DType::kU8, {1}},
                                        {"e", DType::kU8, {9}}};
  WholeWriter writer(folder.path(), tensors, 10);
  for (const TensorInfo& info : tensors) write(writer, info);
  CHECK(writer.finish() == 45);
  const Json index = read_json(folder / "model.safetensors.index.json");
  CHECK(index["metadata"]["total_size"] == 45);
  const Json expected{{"a", "model-00001-of-00003.safetensors"},
                      {"b", "model-00001-of-00003.safetensors"},
                      {"c", "model-00002-of-00003.safetensors"},
                      {"d", "model-00003-of-00003.safetensors"},
                      {"e", "model-00003-of-00003.safetensors"}};
  CHECK(index["weight_map"] == expected);
  CHECK(files(folder).size() == 5);
  CHECK(Reader(folder.path()).tensors().size() == 5);
}

TEST_CASE("the files stand at their full size from the beginning, under another name") {
  const TempFolder folder;
  const WholeWriter writer(folder.path(), {{"a", DType::kF32, {1000}}}, kOneFile);
  CHECK(files(folder) == std::vector<std::string>{"model.safetensors.part"});
  CHECK(fs::file_size(folder / "model.safetensors.part") > 4000);
}

TEST_CASE("groups have shards of their own, which stand under their names when they are finished") {
  const TempFolder folder;
  write_file(folder / "config.json", "{}");
  const auto tensor = [](const char* name, int64_t size) {
    return TensorInfo{name, DType::kU8, {size}};
  };
  Writer writer(folder.path(), {{tensor("a", 6), tensor("b", 6)}, {}, {tensor("c", 3)}}, 10);
  CHECK(writer.bytes() == 15);
  CHECK(writer.bytes(0) == 12);
  CHECK(writer.files(0) == std::vector<std::string>{"model-00001-of-00003.safetensors",
                                                    "model-00002-of-00003.safetensors"});
  CHECK(writer.files(1).empty());
  CHECK(writer.files(2) == std::vector<std::string>{"model-00003-of-00003.safetensors"});
  CHECK(files(folder).size() == 1);
  CHECK_THROWS_WITH_AS(writer.write("c", bytes_of("123")),
                       "tensor c is written before its group was begun", Error);
  writer.begin(2);
  writer.write("c", bytes_of("123"));
  writer.finish(2);
  CHECK(SafetensorsFile(folder / "model-00003-of-00003.safetensors").tensors().size() == 1);
  CHECK_THROWS_WITH_AS(writer.finish(0), doctest::Contains("was never written"), Error);

  Writer again(folder.path(), {{tensor("a", 6), tensor("b", 6)}, {}, {tensor("c", 3)}}, 10);
  write_file(folder / "model-00001-of-00003.safetensors.part", "what a killed run left");
  again.begin(0);
  for (const char* name : {"a", "b"}) again.write(name, bytes_of("123456"));
  again.finish(0);
  again.finish(1);
  again.write_index();  // group 2 was finished by the other
  CHECK(Reader(folder.path()).tensors().size() == 3);
}

TEST_CASE("a tensor that was announced must be written, once, and whole") {
  const TempFolder folder;
  WholeWriter writer(folder.path(), some_tensors(), kOneFile);
  CHECK_THROWS_WITH_AS(writer.write("z", {}), "tensor z was not announced to be written", Error);
  CHECK_THROWS_WITH_AS(writer.write("b", bytes_of("123456")),
                       "tensor b: 6 bytes to write, 7 were announced", Error);
  writer.write("b", bytes_of("1234567"));
  CHECK_THROWS_WITH_AS(writer.write("b", bytes_of("1234567")), "tensor b is written twice", Error);
  for (const TensorInfo& info : some_tensors())
    if (info.name != "b" && info.name != "e") write(writer, info);
  CHECK_THROWS_WITH_AS(writer.finish(), "tensor e was never written", Error);
}

TEST_CASE("a name twice, and a folder that is not there, are refused") {
  const TempFolder folder;
  const std::vector<TensorInfo> twice{{"a", DType::kU8, {1}}, {"a", DType::kF32, {1}}};
  CHECK_THROWS_WITH_AS(WholeWriter(folder.path(), twice, kOneFile),
                       doctest::Contains("tensor a is to be written twice"), Error);
  CHECK_THROWS_WITH_AS(WholeWriter(folder / "none", {{"a", DType::kU8, {1}}}, kOneFile),
                       doctest::Contains("none/model.safetensors.part: No such file or directory"),
                       Error);
}

}  // namespace
}  // namespace aqhost
