#include <doctest/doctest.h>

#include <thread>

#include "base/error.h"
#include "written_tokenizer.h"

namespace aqhost {
namespace {

using Ids = std::vector<int32_t>;

constexpr const char* kModels[] = {"olmoe-tiny", "qwen2-moe-tiny", "mixtral-tiny",
                                   "deepseek-moe-tiny"};

Tokenizer load_model(const std::string& model) { return Tokenizer::load("models/" + model); }

/// Every text of a golden file, for every model in it, with and without special tokens.
void check_cases(const std::string& path) {
  const Json cases = read_json(path);
  REQUIRE(cases.size() > 100);
  for (const std::string model : kModels) {
    const Tokenizer tokenizer = load_model(model);
    for (const Json& one : cases) {
      const auto text = one["text"].get<std::string>();
      CAPTURE(model);
      CAPTURE(text);
      CHECK(tokenizer.encode(text, true) == one[model][0].get<Ids>());
      CHECK(tokenizer.encode(text, false) == one[model][1].get<Ids>());
    }
  }
}

}  // namespace

TEST_CASE("ids equal Hugging Face's on chosen texts") {
  check_cases("golden/tokenizer_cases.json");
}

TEST_CASE("ids equal Hugging Face's on random texts") {
  check_cases("golden/tokenizer_random.json");
}

TEST_CASE("ids equal Hugging Face's for every feature of tokenizer.json") {
  const Json golden = read_json("golden/tokenizer_features.json");
  REQUIRE(golden["variants"].size() > 100);
  for (const Json& variant : golden["variants"]) {
    Json file = golden["bases"][variant["base"].get<std::string>()];
    file.update(variant["change"]);
    file["model"].update(variant["model"]);
    const Tokenizer tokenizer = load_written(file.dump());
    CAPTURE(variant["change"].dump());
    CAPTURE(variant["model"].dump());
    for (const Json& one : variant["cases"]) {
      CAPTURE(one[0]);
      CHECK(tokenizer.encode(one[0].get<std::string>(), true) == one[1].get<Ids>());
    }
  }
}

TEST_CASE("ids equal Hugging Face's for the tokenizer of every model family") {
  const Json golden = read_json("golden/tokenizer_families.json");
  REQUIRE(golden["families"].size() > 15);
  REQUIRE(golden["texts"].size() > 100);
  std::vector<Tokenizer> tokenizers;
  std::vector<std::string> names;
  for (const Json& family : golden["families"]) {
    Json file = golden["bases"][family["base"].get<std::string>()];
    file.update(family["change"]);
    file["model"].update(family["model"]);
    tokenizers.push_back(load_written(file.dump()));
    names.push_back(family["name"]);
    CAPTURE(names.back());
    CHECK(tokenizers.back().encode("a", true) == family["special"].get<Ids>());
  }
  for (const Json& one : golden["texts"]) {
    const auto text = one[0].get<std::string>();
    CAPTURE(text);
    size_t checked = 0;
    for (size_t i = 1; i < one.size(); i++) {
      for (const size_t family : one[i][1].get<std::vector<size_t>>()) {
        CAPTURE(names[family]);
        CHECK(tokenizers[family].encode(text, false) == one[i][0].get<Ids>());
        checked++;
      }
    }
    CHECK(checked == tokenizers.size());
  }
}

TEST_CASE("vocab_size is the largest id + 1, added tokens included") {
  CHECK(load_model("olmoe-tiny").vocab_size() == 2046);
  CHECK(load_model("deepseek-moe-tiny").vocab_size() == 2048);
  Json file = model_file("mixtral-tiny");
  file["model"]["vocab"]["far away"] = 4000;
  CHECK(load_written(file.dump()).vocab_size() == 4001);
}

TEST_CASE("an added token has the model's id or the next free one, whatever the file says") {
  Json file = model_file("mixtral-tiny");
  Json token = file["added_tokens"][0];
  token["content"] = "<new>";
  token["id"] = 3000;
  file["added_tokens"].push_back(token);
  token["content"] = "the";
  file["added_tokens"].push_back(token);
  const Tokenizer tokenizer = load_written(file.dump());
  CHECK(tokenizer.encode("<new>", false) == Ids{2048});
  CHECK(tokenizer.vocab_size() == 2050);
}

TEST_CASE("tokenizer_config.json is not looked at") {
  // olmoe-tiny has none of its own and mixtral-tiny's <s> comes from the post-processor
  Json file = model_file("mixtral-tiny");
  CHECK(load_written(file.dump()).encode("", true) == Ids{1});
  file["post_processor"] = nullptr;
  CHECK(load_written(file.dump()).encode("", true).empty());
}

TEST_CASE("truncation and padding are not applied") {
  Json file = model_file("olmoe-tiny");
  const Ids ids = load_written(file.dump()).encode("a text of several tokens", true);
  REQUIRE(ids.size() > 3);
  file["truncation"] = {{"max_length", 2}, {"direction", "Right"}};
  file["padding"] = {{"strategy", {{"Fixed", 100}}}, {"pad_id", 1}};
  CHECK(load_written(file.dump()).encode("a text of several tokens", true) == ids);
}

TEST_CASE("text that is not UTF-8 is refused with the offset") {
  const Tokenizer tokenizer = load_model("olmoe-tiny");
  const auto check = [&](std::string_view text, const std::string& byte, int offset) {
    CHECK_THROWS_WITH_AS(
        tokenizer.encode(text, false),
        fmt::format("the text is not UTF-8: byte {} at offset {} is out of place", byte, offset)
            .c_str(),
        Error);
  };
  check("ab\xff", "0xff", 2);
  check("\x80", "0x80", 0);
  check("\xc3\xa9\xc3", "0xc3", 2);      // cut off
  check("abc\xc0\x80", "0xc0", 3);       // longer than need be
  check("\xed\xa0\x80", "0xed", 0);      // surrogate
  check("\xf4\x90\x80\x80", "0xf4", 0);  // above U+10FFFF
  check("\xe2\x82 and more", "0xe2", 0);
  CHECK_NOTHROW(tokenizer.encode("\xf4\x8f\xbf\xbf", false));
}

TEST_CASE("one tokenizer serves several threads") {
  const Tokenizer tokenizer = load_model("deepseek-moe-tiny");
  const Json cases = read_json("golden/tokenizer_cases.json");
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (const Json& one : cases) {
        const Ids ids = tokenizer.encode(one["text"].get<std::string>(), false);
        count += ids != one["deepseek-moe-tiny"][1].get<Ids>();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4, 0));
}

}  // namespace aqhost
