#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "chat/template.h"

namespace aqhost {

/// The chat template of a model: chat_template.jinja, or else `chat_template` of
/// tokenizer_config.json, which may have several by name, of which it is the one called "default".
class ChatTemplate {
 public:
  /// Nothing if the folder has no template. An Error names the file and the line of what cannot be
  /// read.
  static std::optional<ChatTemplate> load(const std::filesystem::path& model);

  /// The text of a chat, as apply_chat_template(messages, tokenize=False) of transformers gives it,
  /// but with the date of strftime_now() fixed. `messages` is an array of objects. Throws an Error
  /// if the template refuses the chat. Thread-safe.
  std::string render(const nlohmann::ordered_json& messages) const;

 private:
  ChatTemplate(jinja::Template made, std::vector<std::pair<std::string, jinja::Value>> tokens)
      : template_(std::move(made)), tokens_(std::move(tokens)) {}

  jinja::Template template_;
  std::vector<std::pair<std::string, jinja::Value>> tokens_;  // bos_token and the like
};

}  // namespace aqhost
