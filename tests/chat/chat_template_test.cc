#include "chat/chat_template.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "base/file.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

const nlohmann::ordered_json kHello{{{"role", "user"}, {"content", "Hello"}}};

TEST_CASE("the template comes from chat_template.jinja, or else from tokenizer_config.json") {
  const TempFolder model;
  CHECK(!ChatTemplate::load(model.path()));
  const auto write = [&](const std::string& value) {
    write_file(model / "tokenizer_config.json",
               R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": )" +
                   value + "}");
  };
  write("null");
  CHECK(!ChatTemplate::load(model.path()));
  write(
      R"("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ tools }}{{ add_generation_prompt }}")");
  CHECK(ChatTemplate::load(model.path())->render(kHello) == "<s>Hello</s>NoneFalse");
  write(R"([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}])");
  CHECK(ChatTemplate::load(model.path())->render(kHello) == "yes");
  write_file(model / "chat_template.jinja", "{{ bos_token }}file");
  CHECK(ChatTemplate::load(model.path())->render(kHello) == "<s>file");
}

TEST_CASE("a template that cannot be read is an error with the file and the line") {
  const TempFolder model;
  const auto refused = [&](const char* message) {
    CHECK_THROWS_WITH_AS(ChatTemplate::load(model.path()), doctest::Contains(message), Error);
  };
  write_file(model / "tokenizer_config.json",
             R"({"chat_template": [{"name": "rag", "template": ""}]})");
  refused("tokenizer_config.json: chat_template: none of the 1 templates is called \"default\"");
  write_file(model / "tokenizer_config.json", R"({"chat_template": "\n{% import 'x' %}"})");
  refused(
      "tokenizer_config.json: chat_template, line 2: the statement \"import\" is not supported");
  write_file(model / "chat_template.jinja", "\xff");
  refused("chat_template.jinja: the template is not UTF-8");
}

}  // namespace
}  // namespace aqhost
