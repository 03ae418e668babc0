#include "calibrate/corpus.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

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
constexpr int64_t kVocabulary = 2048, kSeparator = 2047;

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

/// The content of a safetensors file with int64 tensors of one shape.
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
  FileWindows read(const std::string& name, const std::string& content, int64_t length) const {
    return CorpusReader(kModel, kVocabulary, kSeparator).read(write(name, content), length);
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

TEST_CASE("the first windows of JSONL lie within one document and have the ids of its text") {
  const Files files;
  const std::string a = "In the beginning God created the heaven and the earth.";
  const std::string b = "And the earth was without form, and void.";
  const at::Tensor of_a = files.windows("a.txt", a, 4), of_b = files.windows("b.txt", b, 4);
  const at::Tensor both = files.windows(
      "both.jsonl",
      Json{{"text", a}}.dump() + "\n\n{\"id\": 3, \"text\": \"\"}\n" + Json{{"text", b}}.dump(), 4);
  const int64_t n = of_a.size(0) + of_b.size(0);
  CHECK(both.slice(0, 0, n).equal(at::cat({of_a, of_b})));
  // as one text, the second window would begin elsewhere
  CHECK_FALSE(files.windows("one.txt", a + b, 4).slice(0, 0, n).equal(both.slice(0, 0, n)));
}

TEST_CASE("ids are read without a tokenizer: rows are documents, and their rests are joined") {
  const Files files;
  const fs::path nowhere = files.folder / "no model";
  const std::vector<int32_t> ids{1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  CHECK(files.windows("a.npy", npy("(2, 5)", ids), 2, nowhere)
            .equal(rows({1, 2, 3, 4, 6, 7, 8, 9, 5, 10}, 2)));
  CHECK(files.windows("b.npy", npy("(10,)", ids), 2, nowhere)
            .equal(rows({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 2)));
  CHECK(
      files.windows("c.safetensors", safetensors({"x", "y"}, "[3]", {1, 2, 3, 4, 5, 6}), 2, nowhere)
          .equal(rows({1, 2, 4, 5, 3, 6}, 2)));
}

TEST_CASE("an attention mask removes padding on either side") {
  const Files files;
  const std::string file = safetensors({"attention_mask", "input_ids"}, "[2,4]",
                                       {1, 1, 0, 0, 0, 1, 1, 1, 11, 12, 0, 0, 0, 13, 14, 15});
  CHECK(files.windows("a.safetensors", file, 2).equal(rows({11, 12, 13, 14}, 2)));
  const std::string gap =
      safetensors({"attention_mask", "input_ids"}, "[4]", {1, 0, 1, 1, 11, 12, 13, 14});
  CHECK(files.refused("b.safetensors", gap) == doctest::Contains("row 0 of attention_mask"));
}

TEST_CASE("invalid content is refused, and the message names the file and the place") {
  const Files files;
  CHECK(files.refused("a.jsonl", "{\"text\": \"In the beginning\"}\n{\"txt\": \"x\"}") ==
        doctest::Contains("a.jsonl:2: expected an object with a string \"text\""));
  CHECK(files.refused("b.jsonl", "{\"text\": 3}") == doctest::Contains("b.jsonl:1: expected"));
  CHECK(files.refused("c.jsonl", "{\"text\": ") == doctest::Contains("c.jsonl:1"));
  CHECK(files.refused("d.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\"}") ==
        doctest::Contains("d.jsonl: the text has 1 tokens, a window has 2"));
  for (const char* name : {"e.txt", "e.jsonl", "e.npy", "e.safetensors"})
    CHECK(files.refused(name, "") ==
          doctest::Contains((std::string(name) + ": the file is empty").c_str()));
  CHECK(files.refused("e.txt", "\xef\xbb\xbf") == doctest::Contains("e.txt: the file is empty"));
  CHECK(files.refused("f.npy", npy("(2, 2)", {1, 2, 2048, 4})) ==
        doctest::Contains("f.npy: row 1, column 0: id 2048 is outside the model's vocabulary"));
  CHECK(files.refused("g.npy", npy("(1, 2, 2)", {1, 2, 3, 4})) ==
        doctest::Contains("g.npy: has 3 dimensions"));
  CHECK(files.refused("h.safetensors", safetensors({"input_ids"}, "[2]", {1, -100})) ==
        doctest::Contains("h.safetensors: tensor input_ids: row 0, column 1: id -100"));
  CHECK_THROWS_WITH_AS(CorpusReader(kModel, kVocabulary).windows("no/such.jsonl", 2),
                       doctest::Contains("no/such.jsonl"), Error);
}

TEST_CASE("an array of booleans is not accepted as token ids") {
  const Files files;
  std::string array = npy("(8,)", {1, 0});
  array.replace(array.find("<i4"), 3, "|b1");
  CHECK(files.refused("a.npy", array) ==
        doctest::Contains("a.npy: its elements are BOOL, expected token ids, which are integers"));
  const auto typed = [](const std::string& name, const std::string& type) {
    const std::string header =
        fmt::format(R"({{"{}":{{"dtype":"{}","shape":[4],"data_offsets":[0,4]}},"input_ids":)"
                    R"({{"dtype":"I32","shape":[4],"data_offsets":[4,20]}}}})",
                    name, type);
    const std::vector<int32_t> ids{1, 2, 3, 4};
    return stored_file(header, std::string("\1\1\1\0", 4) +
                                   std::string(reinterpret_cast<const char*>(ids.data()), 16));
  };
  // but a mask may consist of booleans
  CHECK(
      files.windows("b.safetensors", typed("attention_mask", "BOOL"), 3).equal(rows({1, 2, 3}, 3)));
  std::string unnamed = typed("x", "BOOL");
  unnamed.replace(unnamed.find("input_ids"), 9, "other_ids");
  CHECK(files.refused("c.safetensors", unnamed) ==
        doctest::Contains("tensor x: its elements are BOOL, expected token ids"));
}

TEST_CASE("documents shorter than a window share windows, with the separator between them") {
  const Files files;
  const std::vector<int32_t> ids{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const FileWindows read = files.read("a.npy", npy("(4, 3)", ids), 5);
  const int64_t s = kSeparator;
  CHECK(read.ids.equal(rows({1, 2, 3, s, 4, 5, 6, s, 7, 8, 9, s, 10, 11, 12}, 5)));
  CHECK((read.documents == 4 && read.tokens == 12 && read.joined == 3 && read.unused == 0));
  // a long document keeps its own windows; only its end is joined
  const FileWindows mixed =
      files.read("b.safetensors",
                 safetensors({"attention_mask", "input_ids"}, "[2,4]",
                             {1, 1, 1, 1, 1, 1, 0, 0, 11, 12, 13, 14, 15, 16, 0, 0}),
                 3);
  CHECK(mixed.ids.equal(rows({11, 12, 13, 14, s, 15}, 3)));
  CHECK((mixed.joined == 1 && mixed.unused == 1));
}

TEST_CASE("499 short chats and one long document are all used") {
  const Files files;
  std::string lines = Json{{"text", std::string(20'000, 'a')}}.dump() + "\n";
  for (int i = 0; i < 499; i++)
    lines += Json{{"messages",
                   {{{"role", "user"}, {"content", "How old is he?"}},
                    {{"role", "assistant"}, {"content", fmt::format("He is {} years old.", i)}}}}}
                 .dump() +
             "\n";
  const FileWindows read = files.read("chats.jsonl", lines, 512);
  CHECK((read.documents == 500 && read.chats == 499 && read.joined > 5));
  CHECK(read.ids.numel() + read.unused >= read.tokens);
  CHECK(read.unused < 512);
  CHECK(describe_joined(read, kSeparator).find("500 documents") != std::string::npos);
  CHECK(describe_joined(files.read("one.txt", "In the beginning", 2), kSeparator).empty());
}

TEST_CASE("a model's separator is its end-of-text or beginning-of-text token, if that is valid") {
  const auto separator = [](const char* config) {
    return document_separator(Json::parse(config), 100);
  };
  CHECK(separator(R"({"eos_token_id": 7, "bos_token_id": 8})") == 7);
  CHECK(separator(R"({"eos_token_id": [9, 7]})") == 9);
  CHECK(separator(R"({"eos_token_id": null, "bos_token_id": 8})") == 8);
  for (const char* none : {"{}", "[]", R"({"eos_token_id": 100})", R"({"eos_token_id": -1})",
                           R"({"eos_token_id": "7"})", R"({"eos_token_id": []})"})
    CHECK_FALSE(separator(none).has_value());
}

TEST_CASE("JSON is recognised by its content, not by the file's name") {
  const Files files;
  const std::string a = "In the beginning God created the heaven and the earth.";
  const std::string b = "And the earth was without form, and void; and darkness was upon it.";
  const std::string chat =
      Json{{"messages",
            {{{"role", "user"}, {"content", a}},
             {{"role", "tool"}, {"content", nullptr}},
             {{"role", "assistant"}, {"content", {{{"type", "text"}, {"text", b}}}}}}}}
          .dump();
  const std::string sharegpt =
      Json{{"conversations", {{{"from", "human"}, {"value", a}}, {{"from", "gpt"}, {"value", b}}}}}
          .dump();
  const std::string lines = Json{{"text", a}}.dump() + "\r\n\n" + Json{{"content", b}}.dump();
  const Json array{{{"text", a}}, b};
  const at::Tensor both = files.windows("plain.jsonl", lines, 6);
  for (const char* name : {"a.JSONL", "a.json", "a.ndjson", "a.txt", "a"})
    CHECK(files.windows(name, lines, 6).equal(both));
  for (const char* name : {"b.json", "b.jsonl", "b.txt"}) {
    CHECK(files.windows(name, array.dump(), 6).equal(both));
    CHECK(files.windows(name, "\xef\xbb\xbf\n " + array.dump(2), 6).equal(both));
  }
  const at::Tensor turns = files.windows("turns.txt", a + "\n\n" + b, 6);
  CHECK(files.windows("c.txt", chat + "\n", 6).equal(turns));
  CHECK(files.windows("d.json", sharegpt, 6).equal(turns));
  CHECK(files.windows("e.json", Json{{"id", 3}, {"text", a}}.dump(2), 6)
            .equal(files.windows("e.txt", a, 6)));
  const std::string strings = Json(a).dump() + "\n\n" + Json(b).dump() + "\r\n";
  for (const char* name : {"f.jsonl", "f.json", "f.txt", "f"})
    CHECK(files.windows(name, strings, 6).equal(both));
  CHECK(files.windows("g.txt", Json("a\n\"b\"").dump(), 2)
            .equal(files.windows("h.txt", "a\n\"b\"", 2)));
}

TEST_CASE("text that only resembles JSON is text") {
  const Files files;
  for (const char* text : {"[Verse 1]\nIn the beginning God created the heaven",
                           "\"In the beginning,\" he said, \"God created the heaven.\"",
                           "{\\documentclass{article} In the beginning God created}",
                           "\"In the beginning.\"\nGod created the heaven and the earth.",
                           "\"In the beginning.\"\n\"God\"\ncreated the heaven and the earth.",
                           "\"In the beginning\" \"God created\"\n\"the heaven.\"",
                           "{} In the beginning God created the heaven."})
    CHECK(files.read("a.txt", text, 4).documents == 1);
  CHECK(files.refused("b.txt", "{\"text\": \"a\",\n oops") == doctest::Contains("not valid JSON"));
  CHECK(files.refused("c.json", "In the beginning") == doctest::Contains("c.json: not valid JSON"));
  CHECK(files.refused("d.json", R"([{"text": "a"}, {"prompt": "b"}])") ==
        doctest::Contains("d.json[1]: expected an object with a string \"text\""));
  CHECK(files.refused("e.json", R"([{"messages": ["hi"]}])") ==
        doctest::Contains("e.json[0]: expected turns"));
  CHECK(files.refused("f.jsonl", R"({"messages": [{"role": "user", "content": 3}]})") ==
        doctest::Contains("f.jsonl:1: the content of a turn is number"));
}

TEST_CASE("files that are neither text nor ids are recognised and refused with advice") {
  using namespace std::string_literals;
  const Files files;
  const std::pair<std::string, const char*> cases[] = {
      {"\x1f\x8b\x08\0\0"s, "compressed by gzip"},
      {"\x28\xb5\x2f\xfd\x24"s, "compressed by zstd"},
      {"\xfd\x37zXZ\0\0"s, "compressed by xz"},
      {"BZh91AY&SY\x1f"s, "compressed by bzip2"},
      {"PK\x03\x04\x14\0"s, "a zip archive (.npz"},
      {"\x80\x02\x8a\x0al\xfc"s, "a Python pickle"},
      {"PAR1\x15\x04"s, "a Parquet file"},
      {"ARROW1\0\0"s, "an Arrow file"},
      {"\xff\xfeI\0n\0"s, "text in UTF-16"},
      {"%PDF-1.7\n"s, "a PDF document"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"s, "a Git LFS pointer"},
      {std::string(257, 'a').replace(9, 91, 91, '\0') + "ustar\0"s + "00"s,
       "a tar archive; expected text, JSON lines or token ids: "},
      {"GGUF\x03\0\0\0"s, "a zero byte at offset 5"}};
  for (const auto& [content, what] : cases)
    for (const char* name : {"a", "a.txt", "a.jsonl"})
      CHECK(files.refused(name, content) == doctest::Contains(what));
  CHECK(files.refused("a.csv", "text,id\n\"a\",3\n") == doctest::Contains("is a table"));
  CHECK(files.refused("a.npy", "In the beginning") == doctest::Contains("a.npy"));
  CHECK_THROWS_WITH_AS(CorpusReader(kModel, kVocabulary).windows(fs::path(files.folder / "."), 2),
                       doctest::Contains("is a folder"), Error);
}

TEST_CASE("ids are recognised by their content, and text may come from a pipe") {
  const Files files;
  const std::vector<int32_t> ids{1, 2, 3, 4};
  CHECK(files.windows("a", npy("(4,)", ids), 2).equal(rows({1, 2, 3, 4}, 2)));
  CHECK(files.windows("b.bin", safetensors({"x"}, "[4]", {1, 2, 3, 4}), 2)
            .equal(rows({1, 2, 3, 4}, 2)));
  const std::string text = "In the beginning God created the heaven and the earth.";
  const fs::path pipe = files.folder / "pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  std::thread writer([&] { std::ofstream(pipe) << text; });
  const at::Tensor piped = CorpusReader(kModel, kVocabulary).windows(pipe, 4);
  writer.join();
  CHECK(piped.equal(files.windows("a.txt", text, 4)));
}

TEST_CASE("a tokenizer in an unsupported form is refused with advice") {
  const Files files;
  const auto refused = [&](const std::string& folder, std::initializer_list<const char*> names) {
    fs::create_directory(files.folder / folder);
    for (const char* name : names) write_file(files.folder / folder / name, "x");
    try {
      CorpusReader(files.folder / folder, kVocabulary).windows(files.write("a.txt", "text"), 2);
    } catch (const Error& e) {
      return doctest::String(e.what());
    }
    return doctest::String("accepted");
  };
  CHECK(refused("none", {}) == doctest::Contains("nor a tokenizer in another form"));
  const doctest::String model = refused("sentencepiece", {"tokenizer.model"});
  CHECK(model == doctest::Contains("only a tokenizer as tokenizer.model (SentencePiece"));
  CHECK(model == doctest::Contains("save_pretrained"));
  CHECK(model == doctest::Contains("need no tokenizer, nor does --algorithm rtn"));
  CHECK(refused("two", {"vocab.json", "merges.txt"}) ==
        doctest::Contains("vocab.json (BPE in two files), merges.txt"));
  CHECK(refused("tiktoken", {"qwen.tiktoken"}) == doctest::Contains("qwen.tiktoken (tiktoken)"));
}

TEST_CASE("the weight of --calib follows the last =, unless a file has the whole name") {
  const Files files;
  CHECK(parse_corpus_file("a.txt").weight == 1);
  CHECK(parse_corpus_file("a.txt=0.5").weight == 0.5);
  CHECK(parse_corpus_file("a=b.txt=2").path == "a=b.txt");
  CHECK(parse_corpus_file("C:a=b.txt").path == "C:a=b.txt");
  const std::string whole = files.write("a=2", "x").string();
  CHECK(parse_corpus_file(whole).path == whole);
  for (const char* wrong : {"a=0", "a=-1", "a=inf", "a=nan"})
    CHECK_THROWS_AS(parse_corpus_file(wrong), UsageError);
  CHECK_THROWS_WITH_AS(parse_corpus_file("=3"),
                       "--calib =3: no file is named in front of the weight", UsageError);
}

TEST_CASE("a hyphen is refused as a name for standard input, unless a file has that name") {
  CHECK_THROWS_WITH_AS(CorpusReader(kModel, kVocabulary).windows("-", 2),
                       doctest::Contains("/dev/stdin"), Error);
}

}  // namespace aqhost
