#include <doctest/doctest.h>

#include "base/error.h"
#include "base/file.h"
#include "temp_folder.h"
#include "written_tokenizer.h"

namespace aqhost {
namespace {

/// olmoe-tiny's error after the value at `pointer` was replaced.
std::string error_with(const char* pointer, const Json& value) {
  Json file = model_file("olmoe-tiny");
  file[Json::json_pointer(pointer)] = value;
  return load_error(file.dump());
}

Json split_by(const std::string& regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

}  // namespace

TEST_CASE("a kind of part that is not supported is named") {
  CHECK(error_with("/pre_tokenizer", {{"type", "BertPreTokenizer"}}) ==
        "tokenizer.json: pre_tokenizer.type \"BertPreTokenizer\" is not supported");
  CHECK(error_with("/normalizer", {{"type", "Precompiled"}}) ==
        "tokenizer.json: normalizer.type \"Precompiled\" is not supported");
  CHECK(error_with("/normalizer", {{"type", "Sequence"},
                                   {"normalizers", {{{"type", "NFC"}}, {{"type", "Nmt"}}}}}) ==
        "tokenizer.json: normalizer.normalizers[1].type \"Nmt\" is not supported");
  CHECK(error_with("/post_processor", {{"type", "BertProcessing"}}) ==
        "tokenizer.json: post_processor.type \"BertProcessing\" is not supported");
  CHECK(error_with("/model/type", "WordPiece") ==
        "tokenizer.json: model.type \"WordPiece\" is not supported");
}

TEST_CASE("options of the model that are not supported are named") {
  CHECK(error_with("/model/dropout", 0.1) == "tokenizer.json: model.dropout 0.1 is not supported");
  CHECK(error_with("/model/continuing_subword_prefix", "##") ==
        "tokenizer.json: model.continuing_subword_prefix \"##\" is not supported");
  CHECK(error_with("/model/end_of_word_suffix", "</w>") ==
        "tokenizer.json: model.end_of_word_suffix \"</w>\" is not supported");
  CHECK(error_with("/model/end_of_word_suffix", "") == "");
  CHECK(error_with("/model/unk_token", "<none>") ==
        "tokenizer.json: model.unk_token \"<none>\" is not in model.vocab");
  CHECK(error_with("/model/fuse_unk", "yes") ==
        "tokenizer.json: model.fuse_unk: expected true or false, found \"yes\"");
}

TEST_CASE("combinations of pre-tokenizers that are not supported are named") {
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const Json metaspace = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "first"}};
  const auto sequence = [](const Json& first, const Json& second) {
    return error_with("/pre_tokenizer",
                      {{"type", "Sequence"}, {"pretokenizers", Json::array({first, second})}});
  };
  CHECK(sequence(bytes, split_by("a")) ==
        "tokenizer.json: pre_tokenizer.pretokenizers[1].type \"Split\" is not supported");
  CHECK(sequence(split_by("a"), metaspace) ==
        "tokenizer.json: pre_tokenizer.pretokenizers[1].prepend_scheme \"first\" after another "
        "pre-tokenizer is not supported");
  Json split = split_by("a");
  split["behavior"] = "Sideways";
  CHECK(error_with("/pre_tokenizer", split) ==
        "tokenizer.json: pre_tokenizer.behavior \"Sideways\" is not supported");
}

TEST_CASE("regular expressions whose meaning would differ are refused") {
  const auto why = [](const std::string& regex) {
    const std::string error = error_with("/pre_tokenizer", split_by(regex));
    const std::string begin = "tokenizer.json: pre_tokenizer.pattern: the regular expression \"" +
                              regex + "\" is not supported: ";
    return error.starts_with(begin) ? error.substr(begin.size()) : "unexpected: " + error;
  };
  CHECK(why("[a[b]]") == "a class within a class");
  const std::string intersection = "an intersection of classes in another form than [A&&[B]]";
  for (const char* form : {"[a&&b]", "[&&[a]]", "[^a&&[b]]", "[a&&[b]c]", "[a&&[b&&[c]]]"}) {
    CHECK(why(form) == intersection);
  }
  CHECK(why("[[:alpha:]]") == "a class within a class");
  CHECK(why("(?m)a") == "an option other than i");
  CHECK(why("a(?i)b|c") == "an option within the pattern");
  CHECK(why("(*FAIL)") == "(*");
  CHECK(why("\\X") == "the escape \\X");
  CHECK(why("[\\W]") == "the escape \\W");
  CHECK(why("\\u12") == "\\u without four hexadecimal digits");
  CHECK(why("\\pL") == "\\p without {name}");
  CHECK(why("a{2}?") == "{n}?");
  CHECK(why("[a") == "a class that is not closed");
  CHECK(why("a)") == "a parenthesis that was not opened");
  CHECK(why("\\") == "the escape \\");
  CHECK(why("[\\P{L}]") == "the complement of \\p{L} within a class");
  CHECK(why("[\\D]") == "the escape \\D");
  // Their characters differ between the versions of Unicode of Oniguruma and PCRE2, or are unknown.
  for (const char* name : {"C", "Cn", "Mn", "l", "Hani", "Common", "Emoji", "Nonsense", ""}) {
    CHECK(why(fmt::format("\\p{{{}}}", name)) ==
          fmt::format("\\p{{{}}}, which is neither a general category nor a script whose "
                      "characters are known",
                      name));
  }
  CHECK(why("(a") == "missing closing parenthesis");
}

TEST_CASE("vocabularies that cannot be are refused") {
  CHECK(load_error(R"({"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}})") ==
        "tokenizer.json: model.vocab: the id of \"a\" is \"x\", expected an integer from 0 to "
        "2147483647");
  for (const char* id : {"-1", "1.5", "2147483648", "null", "[1]", "{}"}) {
    CHECK(load_error(fmt::format(R"({{"model": {{"vocab": {{"a": {}}}, "merges": []}}}})", id))
              .starts_with("tokenizer.json: model.vocab: the id of \"a\" is "));
  }
  CHECK(load_error(R"({"model": {"vocab": {"a": 1, "a": 2}, "merges": []}})") ==
        "tokenizer.json: model.vocab: \"a\" appears twice");
  const std::string shared =
      load_error(R"({"model": {"vocab": {"a": 1, "b": 0, "c": 1}, "merges": []}})");
  CHECK(shared.find("share the id 1") != shared.npos);
  CHECK(shared.find("\"a\"") != shared.npos);
  CHECK(shared.find("\"c\"") != shared.npos);
  CHECK(load_error(R"({"model": {"vocab": [["a", 0.5]], "merges": []}})") ==
        "tokenizer.json: model.vocab: expected an object of tokens and ids, found array");
  CHECK(load_error(R"({"model": {"merges": []}})") ==
        "tokenizer.json: model.vocab: expected an object of tokens and ids, found nothing");
}

TEST_CASE("merges that cannot be are refused with their number") {
  const auto error = [](const std::string& merges) {
    return load_error(R"({"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": )" + merges +
                      "}}");
  };
  CHECK(error(R"(["a b"])") == "");
  CHECK(error(R"(["#version: 0.2", "a b"])") == "");
  CHECK(error(R"([["a", "b"], ["a", "x"]])") ==
        "tokenizer.json: model.merges[1]: \"x\" of \"a\" + \"x\" is not in model.vocab");
  CHECK(error(R"(["b a"])") ==
        "tokenizer.json: model.merges[0]: \"ba\" of \"b\" + \"a\" is not in model.vocab");
  for (const char* merge : {"\"ab\"", "\"a b c\"", "\" b\"", "\"a \"", "[\"a\"]", "7", "[1, 2]",
                            "[\"a\", \"b\", \"a\"]", "[[\"a\", \"b\"]]", "{}", "[\"a\", null]"}) {
    CAPTURE(std::string(merge));
    CHECK(error(fmt::format("[\"a b\", {}]", merge)) ==
          "tokenizer.json: model.merges[1]: expected a pair of tokens");
  }
  CHECK(error("{}") == "tokenizer.json: model.merges: expected an array of pairs, found object");
}

TEST_CASE("added tokens and templates that cannot be are refused") {
  CHECK(error_with("/added_tokens/1/content", "<|endoftext|>") ==
        "tokenizer.json: added_tokens[1].content \"<|endoftext|>\" appears twice");
  CHECK(error_with("/added_tokens/0/lstrip", nullptr) ==
        "tokenizer.json: added_tokens[0].lstrip: expected true or false, found nothing");
  Json last = model_file("olmoe-tiny");
  last["model"]["vocab"]["<last>"] = INT32_MAX;
  for (const char* content : {"<last>", "<one too many>"}) {
    last["added_tokens"].push_back(last["added_tokens"][0]);
    last["added_tokens"].back()["content"] = content;
  }
  CHECK(load_error(last.dump()) ==
        "tokenizer.json: added_tokens[" + std::to_string(last["added_tokens"].size() - 1) +
            "].content \"<one too many>\" would have the id 2147483648, expected at most "
            "2147483647");
  Json file = model_file("mixtral-tiny");
  Json missing = file;
  missing["post_processor"]["special_tokens"] = Json::object();
  CHECK(load_error(missing.dump()) ==
        "tokenizer.json: post_processor.special_tokens.<s>: expected an object, found nothing");
  Json pair = file;
  pair["post_processor"]["single"][1]["Sequence"]["id"] = "B";
  CHECK(load_error(pair.dump()) ==
        "tokenizer.json: post_processor.single[1].Sequence.id \"B\" is not supported");
  Json empty = file;
  empty["post_processor"]["single"].erase(1);
  CHECK(load_error(empty.dump()) ==
        "tokenizer.json: post_processor.single: expected a Sequence \"A\" among the parts");
  Json twice = file;
  const Json one = file["post_processor"];
  twice["post_processor"] = {{"type", "Sequence"}, {"processors", {one, one}}};
  CHECK(load_error(twice.dump()) ==
        "tokenizer.json: post_processor.processors[1]: a second TemplateProcessing is not "
        "supported");
}

TEST_CASE("without a tokenizer.json, the message says how to make one") {
  const TempFolder folder;
  write_file(folder.path() / "tiktoken.model", "");
  CHECK_THROWS_WITH_AS(
      Tokenizer::load(folder.path()),
      doctest::Contains("tokenizer.json: there is no such file, only a tokenizer as tiktoken.model "
                        "(tiktoken); expected a tokenizer.json, which "
                        "transformers.convert_slow_tokenizer makes: TikTokenConverter("),
      Error);
}

TEST_CASE("files that are no tokenizer.json are refused") {
  CHECK_THROWS_WITH_AS(
      Tokenizer::load("no/such/folder"),
      doctest::Contains("no/such/folder/tokenizer.json: there is no such file, nor a "
                        "tokenizer in another form"),
      Error);
  CHECK(load_error("").starts_with("tokenizer.json: not valid JSON: "));
  CHECK(load_error("{\"model\": ").starts_with("tokenizer.json: not valid JSON: "));
  CHECK(load_error("[]") == "tokenizer.json: expected an object, found array");
  CHECK(load_error("{}") == "tokenizer.json: model: expected an object, found nothing");
  CHECK(load_error("{\"model\": 1, \"model\": 2}") ==
        "tokenizer.json: key \"model\" appears twice");
  CHECK(load_error(R"({"model": {"vocab": {}, "vocab": {}}})") ==
        "tokenizer.json: key \"vocab\" appears twice");
  CHECK(load_error(R"({"model": {"merges": [], "merges": []}})") ==
        "tokenizer.json: key \"merges\" appears twice");
  CHECK(load_error(std::string(100, '[')) == "tokenizer.json: JSON nested deeper than 64 levels");
}

}  // namespace aqhost
