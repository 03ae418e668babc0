#include "export/gguf_tokenizer.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/field.h"
#include "base/file.h"
#include "base/json.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// llama_token_type of llama.h.
enum TokenType : int32_t {
  kNormalToken = 1,
  kUnknownToken = 2,
  kControlToken = 3,
  kUserToken = 4,
  kUnusedToken = 5,
  kByteToken = 6
};

constexpr std::string_view kSpaceMark = "\u2581";  // SentencePiece's for a space

struct Token {
  std::string text;
  int32_t type = kUnusedToken;
  float score = 0;
};

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

/// A step of a pre-tokenizer as text: "split REGEX" (in which CR and LF are written as escapes, as
/// DeepSeek's files do not), "digits", "bytes" (byte level), "gpt2" (byte level with the regex of
/// GPT-2). Steps of another kind are not known.
std::string step_of(const Field& step) {
  const std::string type = step["type"].text();
  if (type == "ByteLevel") {
    if (step["add_prefix_space"].flag_or(true)) step["add_prefix_space"].unsupported();
    return step["use_regex"].flag_or(true) ? "gpt2" : "bytes";
  }
  if (type == "Digits" && step["individual_digits"].flag_or(false)) return "digits";
  if (type == "Split" && step["behavior"].text() == "Isolated" && !step["invert"].flag_or(false))
    return "split " + replaced(replaced(step["pattern"]["Regex"].text(), "\r", "\\r"), "\n", "\\n");
  step["type"].unsupported();
}

/// Words with one change from upper to lower case.
std::string gpt_4o_regex() {
  const std::string start = "[^\\r\\n\\p{L}\\p{N}]?", end = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|";
  const std::string upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
  const std::string lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
  return start + upper + "*" + lower + "+" + end + start + upper + "+" + lower + "*" + end +
         "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
}

/// A mark of ASCII with the letters behind it, words with combining marks, and other marks.
std::string deepseek_v3_regex() {
  return R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
         R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
}

/// The steps of the pre-tokenizers of which llama.cpp has an equal one, by its name there
/// (llama-vocab.cpp). That of deepseek-llm joins digits, which no merge does. That of gpt-4o is
/// llama.cpp's for this regex, but separates a combining mark from its letter.
const std::map<std::string, std::vector<std::string>>& known_pre_tokenizers() {
  constexpr const char* kWords = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
  constexpr const char* kRest = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  static const std::map<std::string, std::vector<std::string>> kKnown{
      {"gpt-2", {"gpt2"}},
      {"refact", {"digits", "gpt2"}},
      {"qwen2", {fmt::format("split {}\\p{{N}}{}", kWords, kRest), "bytes"}},
      {"llama-bpe", {fmt::format("split {}\\p{{N}}{{1,3}}{}", kWords, kRest), "bytes"}},
      {"gpt-4o", {"split " + gpt_4o_regex(), "bytes"}},
      {"deepseek-v3",
       {"split \\p{N}{1,3}", "split [\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        "split " + deepseek_v3_regex(), "bytes"}},
      {"deepseek-llm",
       {"split [\\r\\n]", "split \\s?\\p{L}+", "split \\s?\\p{P}+",
        "split [\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", "digits", "bytes"}}};
  return kKnown;
}

/// The name that llama.cpp has for the pre-tokenizer of a byte-level BPE.
std::string pre_tokenizer_name(const Field& pre_tokenizer) {
  if (pre_tokenizer.is_null()) pre_tokenizer.mismatch("a pre-tokenizer");
  std::vector<std::string> steps;
  if (pre_tokenizer["type"].text() == "Sequence")
    for (const Field& step : pre_tokenizer["pretokenizers"].items()) steps.push_back(step_of(step));
  else
    steps.push_back(step_of(pre_tokenizer));
  std::string names;
  for (const auto& [name, known] : known_pre_tokenizers()) {
    if (steps == known) return name;
    names += (names.empty() ? "" : ", ") + name;
  }
  fail("{}: is none of the pre-tokenizers that can be named for llama.cpp ({})",
       pre_tokenizer.where(), names);
}

/// Whether a text without special tokens gets a space in front of it.
bool adds_space(const Field& tokenizer) {
  const auto prepends = [](const Field& step) {
    const std::string type = step["type"].text();
    return type == "Prepend" ||
           (type == "Metaspace" && step["prepend_scheme"].text_or("always") != "never");
  };
  for (const auto& [part, list] :
       {std::pair("normalizer", "normalizers"), std::pair("pre_tokenizer", "pretokenizers")}) {
    const Field field = tokenizer[part];
    if (field.is_null()) continue;
    if (field["type"].text() != "Sequence") {
      if (prepends(field)) return true;
      continue;
    }
    for (const Field& step : field[list].items())
      if (prepends(step)) return true;
  }
  return false;
}

/// tokenizer.json, and the values that other files add to it.
class TokenizerReader {
 public:
  TokenizerReader(const fs::path& directory, const Json& config, int64_t vocab_size)
      : directory_(directory),
        config_(config),
        file_((directory / "tokenizer.json").string()),
        tokens_(static_cast<std::size_t>(vocab_size)) {
    std::error_code ignored;
    if (!fs::exists(file_, ignored))
      fail("{}: is missing; a GGUF file contains the tokenizer", file_);
    json_ = read_json(file_);
    if (fs::exists(directory / "tokenizer_config.json", ignored))
      settings_ = read_json(directory / "tokenizer_config.json");
  }

  GgufMetadata read() {
    const Field model = root()["model"];
    if (model["type"].text_or("BPE") != "BPE") model["type"].unsupported();
    fallback_ = model["byte_fallback"].flag_or(false);
    read_tokens(model["vocab"]);
    read_merges(model["merges"]);
    read_added_tokens();
    const std::string unknown = model["unk_token"].text_or("");
    if (const auto id = id_of(unknown); id && fallback_) tokens_[*id].type = kUnknownToken;
    write_tables();
    write_special_ids(unknown);
    write_chat_template();
    return std::move(metadata_);
  }

 private:
  Field root() const { return {json_, file_}; }
  Field settings() const { return {settings_, (directory_ / "tokenizer_config.json").string()}; }

  Token& token_at(const Field& id) {
    const auto size = static_cast<int64_t>(tokens_.size());
    const int64_t value = id.integer(0);
    if (value >= size)
      fail("{}: the id is {}, and config.json has a vocab_size of {}", id.where(), value, size);
    return tokens_[static_cast<std::size_t>(value)];
  }

  void read_tokens(const Field& vocab) {
    for (const auto& [text, id] : vocab.members()) {
      Token& token = token_at(id);
      token.text = text;
      token.type = fallback_ && text.size() == 6 && text.starts_with("<0x") && text.ends_with(">")
                       ? kByteToken
                       : kNormalToken;
      ids_[text] = static_cast<std::size_t>(id.integer());
    }
  }

  /// In a byte-level BPE, merges are stored as they are. The scores of SentencePiece's BPE make the
  /// same merges, in the same order.
  void read_merges(const Field& merges) {
    if (fallback_)
      for (Token& token : tokens_) token.score = -1e6F;  // a token that no merge makes comes last
    float rank = 0;
    for (const Field& merge : merges.items()) {
      std::vector<std::string> parts;
      if (merge.json().is_string()) {
        const std::string& text = merge.text();
        const std::size_t space = text.find(' ', 1);
        if (space == std::string::npos) merge.mismatch("two tokens with a space between them");
        parts = {text.substr(0, space), text.substr(space + 1)};
      } else {
        for (const Field& part : merge.items()) parts.push_back(part.text());
        if (parts.size() != 2) merge.mismatch("two tokens");
      }
      if (fallback_) {
        const auto id = id_of(parts[0] + parts[1]);
        if (id) tokens_[*id].score = std::max(tokens_[*id].score, -rank);
      } else {  // a space separates the two
        merges_.push_back(replaced(parts[0], " ", "\u0120") + " " +
                          replaced(parts[1], " ", "\u0120"));
      }
      rank++;
    }
  }

  void read_added_tokens() {
    const Field added = root()["added_tokens"];
    if (added.is_null()) return;
    for (const Field& entry : added.items()) {
      Token& token = token_at(entry["id"]);
      const bool special = entry["special"].flag_or(false);
      token.text = entry["content"].text();
      ids_[token.text] = static_cast<std::size_t>(entry["id"].integer());
      token.type = special ? kControlToken : kUserToken;
      if (!special) token.text = replaced(token.text, kSpaceMark, " ");
    }
  }

  std::optional<std::size_t> id_of(const std::string& text) const {
    const auto it = ids_.find(text);
    return it == ids_.end() ? std::nullopt : std::optional(it->second);
  }

  void write_tables() {
    std::vector<std::string> texts;
    std::vector<int32_t> types;
    std::vector<float> scores;
    for (std::size_t i = 0; i < tokens_.size(); i++) {
      const Token& token = tokens_[i];
      texts.push_back(token.type == kUnusedToken ? fmt::format("[PAD{}]", i) : token.text);
      types.push_back(token.type);
      scores.push_back(token.type == kNormalToken ? token.score : 0);
    }
    metadata_.text("tokenizer.ggml.model", fallback_ ? "llama" : "gpt2");
    metadata_.text("tokenizer.ggml.pre",
                   fallback_ ? "default" : pre_tokenizer_name(root()["pre_tokenizer"]));
    metadata_.texts("tokenizer.ggml.tokens", texts);
    metadata_.integers("tokenizer.ggml.token_type", types);
    if (fallback_) {
      metadata_.numbers("tokenizer.ggml.scores", scores);
      metadata_.flag("tokenizer.ggml.add_space_prefix", adds_space(root()));
    } else {
      metadata_.texts("tokenizer.ggml.merges", merges_);
    }
  }

  /// The id of "bos_token" and so on: the one of tokenizer_config.json, or else of config.json.
  std::optional<std::size_t> special_id(const std::string& name) const {
    if (settings_.is_object()) {
      const Field token = settings()[name + "_token"];
      const bool detailed = token.json().is_object();
      if (const Field text = detailed ? token["content"] : token; !text.is_null())
        if (const auto id = id_of(text.text())) return id;
    }
    const Json none;
    Json id = config_.value(name + "_token_id", none);
    if (id.is_array() && !id.empty()) id = id.front();
    const bool valid = id.is_number_unsigned() && id.get<uint64_t>() < tokens_.size();
    return valid ? std::optional(id.get<std::size_t>()) : std::nullopt;
  }

  /// The special tokens before and after a text, as the post-processor of tokenizer.json adds them.
  std::pair<std::optional<std::size_t>, std::optional<std::size_t>> added_around() const {
    const Field post = root()["post_processor"];
    if (post.is_null()) return {};
    std::vector<Field> steps{post};
    if (post["type"].text() == "Sequence") steps = post["processors"].items();
    for (const Field& step : steps) {
      if (step["type"].text() == "ByteLevel") continue;
      if (step["type"].text() != "TemplateProcessing") step["type"].unsupported();
      const std::vector<Field> single = step["single"].items();
      const auto special = [&](const Field& part) -> std::optional<std::size_t> {
        const Field token = part["SpecialToken"];
        return token.is_null() ? std::nullopt : id_of(token["id"].text());
      };
      if (single.empty() || single.size() > 3) step["single"].unsupported();
      return {special(single.front()), special(single.back())};
    }
    return {};
  }

  void write_special_ids(const std::string& unknown) {
    auto [before, after] = added_around();
    const auto write = [&](const char* key, std::optional<std::size_t> id) {
      if (id)
        metadata_.u32(fmt::format("tokenizer.ggml.{}_token_id", key), static_cast<int64_t>(*id));
    };
    write("bos", before ? before : special_id("bos"));
    write("eos", after ? after : special_id("eos"));
    write("padding", special_id("pad"));
    write("unknown", unknown.empty() ? special_id("unk") : id_of(unknown));
    metadata_.flag("tokenizer.ggml.add_bos_token", before.has_value());
    metadata_.flag("tokenizer.ggml.add_eos_token", after.has_value());
  }

  /// chat_template.jinja comes before the "chat_template" of tokenizer_config.json, which is a text
  /// or a list of named ones.
  void write_chat_template() {
    constexpr const char* kKey = "tokenizer.chat_template";
    std::error_code ignored;
    if (const fs::path file = directory_ / "chat_template.jinja"; fs::exists(file, ignored)) {
      metadata_.text(kKey, read_file(file));
      return;
    }
    if (!settings_.is_object()) return;
    const Field chat = settings()["chat_template"];
    if (chat.is_null()) return;
    if (chat.json().is_string()) {
      metadata_.text(kKey, chat.text());
      return;
    }
    std::vector<std::string> others;
    for (const Field& entry : chat.items()) {
      const std::string name = entry["name"].text();
      if (name != "default") others.push_back(name);
      metadata_.text(name == "default" ? kKey : fmt::format("{}.{}", kKey, name),
                     entry["template"].text());
    }
    if (!others.empty()) metadata_.texts("tokenizer.chat_templates", others);
  }

  const fs::path directory_;
  const Json& config_;
  const std::string file_;
  Json json_, settings_;
  bool fallback_ = false;  // the BPE of SentencePiece
  std::vector<Token> tokens_;
  std::vector<std::string> merges_;
  std::map<std::string, std::size_t> ids_;
  GgufMetadata metadata_;
};

}  // namespace

GgufMetadata gguf_tokenizer(const fs::path& directory, const Json& config, int64_t vocab_size) {
  return TokenizerReader(directory, config, vocab_size).read();
}

}  // namespace aqhost
