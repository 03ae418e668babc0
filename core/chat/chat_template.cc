#include "chat/chat_template.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kTemplateKey = "chat_template";

/// A JSON object in the folder; empty if there is no such file.
Json object_in(const fs::path& file) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) return Json::object();
  Json json = read_json(file);
  if (!json.is_object()) fail("{}: expected a JSON object", file.string());
  return json;
}

/// The template in tokenizer_config.json; "" if there is none.
std::string template_in(const Json& config, const std::string& where) {
  const Json value = config.value(kTemplateKey, Json());
  if (value.is_null()) return {};
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) fail("{}: expected a string or a list of named templates", where);
  for (const Json& named : value)
    if (named.is_object() && named.value("name", Json()) == "default" &&
        named.value("template", Json()).is_string())
      return named["template"].get<std::string>();
  fail("{}: none of the {} templates is called \"default\"", where, value.size());
}

/// The special tokens that templates may print: those of tokenizer_config.json, or else of
/// special_tokens_map.json.
std::vector<std::pair<std::string, jinja::Value>> special_tokens(const Json& config,
                                                                 const Json& map) {
  std::vector<std::pair<std::string, jinja::Value>> tokens;
  for (const char* key :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"})
    for (const Json* from : {&config, &map}) {
      Json token = from->value(key, Json());
      if (token.is_object()) token = Json(token.value("content", Json()));
      if (!token.is_string()) continue;
      tokens.emplace_back(key, token.get<std::string>());
      break;
    }
  return tokens;
}

}  // namespace

std::optional<ChatTemplate> ChatTemplate::load(const fs::path& model) {
  const fs::path file = model / "chat_template.jinja";
  const Json config = object_in(model / kTokenizerConfig);
  std::error_code ignored;
  const bool has_file = fs::is_regular_file(file, ignored);
  const std::string where =
      has_file ? file.string()
               : fmt::format("{}: {}", (model / kTokenizerConfig).string(), kTemplateKey);
  const std::string source = has_file ? read_file(file) : template_in(config, where);
  if (source.empty()) return {};
  return ChatTemplate(jinja::Template::parse(source, where),
                      special_tokens(config, object_in(model / "special_tokens_map.json")));
}

std::string ChatTemplate::render(const nlohmann::ordered_json& messages) const {
  auto variables = tokens_;
  variables.emplace_back("messages", jinja::from_json(messages));
  variables.emplace_back("tools", jinja::Value());
  variables.emplace_back("documents", jinja::Value());
  variables.emplace_back("add_generation_prompt", false);
  return template_.render(variables);
}

}  // namespace aqhost
