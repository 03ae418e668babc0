#include "calibrate/corpus.h"

#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/stored_file.h"
#include "temp_folder.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

const fs::path kModel = fs::path(AQ_TESTS_DIR) / "models/olmoe-tiny";
constexpr int64_t kVocabulary = 2048;

std::string npy(const std::string& shape, const std::vector<int32_t>& ids) {
  const std::string header =
      fmt::format("{{'descr': '<i4', 'fortran_order': False, 'shape': {}, }}\n", shape);
  std::string file = "\x93NUMPY\x01";
  file += '\0';
  file += static_cast<char>(header.size());
  file += '\0';
  return file + header +
         std::string(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
}

/// A file of int64 tensors of one shape, one behind the other.
std::string safetensors(const std::vector<std::string>& names, const std::string& shape,
                        const std::vector<int64_t>& values) {
  const std::size_t each = values.size() / names.size() * sizeof(int64_t);
  std::string header = "{";
  for (std::size_t i = 0; i < names.size(); i++)
    header += fmt::format(R"({}"{}":{{"dtype":"I64","shape":{},"data_offsets":[{},{}]}})",
                          i > 0 ? "," : "", names[i], shape, i * each, (i + 1) * each);
  return stored_file(header + "}", {reinterpret_cast<const char*>(values.data()),
                                    values.size() * sizeof(int64_t)});
}

/// Reads files of one folder.
struct Files {
  fs::path write(const std::string& name, const std::string& content) const {
    write_file(folder / name, content);
    return folder / name;
  }
  at::Tensor windows(const std::string& name, const std::string& content, int64_t length,
                     const fs::path& model = kModel) const {
    return CorpusReader(model, kVocabulary).windows(write(name, content), length);
  }
  doctest::String refused(const std::string& name, const std::string& content) const {
    try {
      windows(name, content, 2);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  }
  TempFolder folder;
};

at::Tensor rows(std::initializer_list<int64_t> ids, int64_t length) {
  return at::tensor(at::ArrayRef<int64_t>(ids), at::kLong).view({-1, length});
}

}  // namespace

TEST_CASE("a window of JSONL lies in one document, and has what the text alone has") {
  const Files files;
  const std::string a = "In the beginning God created the heaven and the earth.";
  const std::string b = "And the earth was without form, and void.";
  const at::Tensor of_a = files.windows("a.txt", a, 4), of_b = files.windows("b.txt", b, 4);
  const at::Tensor both = files.windows(
      "both.jsonl",
      Json{{"text", a}}.dump() + "\n\n{\"id\": 3, \"text\": \"\"}\n" + Json{{"text", b}}.dump(), 4);
  CHECK(both.equal(at::cat({of_a, of_b})));
  // as one text the second would begin elsewhere
  CHECK_FALSE(files.windows("one.txt", a + b, 4).slice(0, 0, both.size(0)).equal(both));
}

TEST_CASE("ids are read without a tokenizer: rows are documents, what is left of one is dropped") {
  const Files files;
  const fs::path nowhere = files.folder / "no model";
  const std::vector<int32_t> ids{1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  CHECK(files.windows("a.npy", npy("(2, 5)", ids), 2, nowhere)
            .equal(rows({1, 2, 3, 4, 6, 7, 8, 9}, 2)));
  CHECK(files.windows("b.npy", npy("(10,)", ids), 2, nowhere)
            .equal(rows({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 2)));
  CHECK(
      files.windows("c.safetensors", safetensors({"x", "y"}, "[3]", {1, 2, 3, 4, 5, 6}), 2, nowhere)
          .equal(rows({1, 2, 4, 5}, 2)));
}

TEST_CASE("an attention mask takes padding away, on either side") {
  const Files files;
  const std::string file = safetensors({"attention_mask", "input_ids"}, "[2,4]",
                                       {1, 1, 0, 0, 0, 1, 1, 1, 11, 12, 0, 0, 0, 13, 14, 15});
  CHECK(files.windows("a.safetensors", file, 2).equal(rows({11, 12, 13, 14}, 2)));
  const std::string gap =
      safetensors({"attention_mask", "input_ids"}, "[4]", {1, 0, 1, 1, 11, 12, 13, 14});
  CHECK(files.refused("b.safetensors", gap) == doctest::Contains("row 0 of attention_mask"));
}

TEST_CASE("what cannot be read is refused with file and place") {
  const Files files;
  CHECK(files.refused("a.jsonl", "{\"text\": \"In the beginning\"}\n{\"txt\": \"x\"}") ==
        doctest::Contains("a.jsonl:2: expected an object with a string \"text\""));
  CHECK(files.refused("b.jsonl", "{\"text\": 3}") == doctest::Contains("b.jsonl:1: expected"));
  CHECK(files.refused("c.jsonl", "{\"text\": ") == doctest::Contains("c.jsonl:1"));
  CHECK(files.refused("d.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}") ==
        doctest::Contains("d.jsonl: the longest of 2 documents has 1 tokens, a window has 2"));
  CHECK(files.refused("e.txt", "") == doctest::Contains("e.txt: the text is empty"));
  CHECK(files.refused("f.npy", npy("(2, 2)", {1, 2, 2048, 4})) ==
        doctest::Contains("f.npy: row 1, column 0: id 2048 is outside the model's vocabulary"));
  CHECK(files.refused("g.npy", npy("(1, 2, 2)", {1, 2, 3, 4})) ==
        doctest::Contains("g.npy: has 3 dimensions"));
  CHECK(files.refused("h.safetensors", safetensors({"input_ids"}, "[2]", {1, -100})) ==
        doctest::Contains("h.safetensors: tensor input_ids: row 0, column 1: id -100"));
  CHECK_THROWS_WITH_AS(CorpusReader(kModel, kVocabulary).windows("no/such.jsonl", 2),
                       doctest::Contains("no/such.jsonl"), Error);
}

TEST_CASE("--calib's weight stands behind the last =, unless a file bears the whole name") {
  const Files files;
  CHECK(parse_corpus_file("a.txt").weight == 1);
  CHECK(parse_corpus_file("a.txt=0.5").weight == 0.5);
  CHECK(parse_corpus_file("a=b.txt=2").path == "a=b.txt");
  CHECK(parse_corpus_file("C:a=b.txt").path == "C:a=b.txt");
  const std::string whole = files.write("a=2", "x").string();
  CHECK(parse_corpus_file(whole).path == whole);
  for (const char* wrong : {"a=0", "a=-1", "a=inf", "a=nan"})
    CHECK_THROWS_AS(parse_corpus_file(wrong), UsageError);
}

}  // namespace aqhost
