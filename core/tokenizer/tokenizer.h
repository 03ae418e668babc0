#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace aqhost {

/// Turns text into ids exactly as Hugging Face's tokenizers library does by tokenizer.json (BPE
/// models). A feature of the file that is not supported is an Error that names it. The `truncation`
/// and `padding` sections are not applied. tokenizer_config.json is not read: if there is a
/// tokenizer.json, transformers 5 ignores add_bos_token and add_eos_token of the other file, and
/// only the post_processor of tokenizer.json decides. The classes Qwen2Tokenizer and
/// Qwen3_5Tokenizer of transformers 5 do not follow tokenizer.json: they have a normalizer and a
/// pre-tokenizer of their own, equal to those of the published files, and take added tokens from
/// tokenizer_config.json only. Const functions are thread-safe.
class Tokenizer {
 public:
  /// `directory` must contain tokenizer.json.
  static Tokenizer load(const std::filesystem::path& directory);
  /// Parses the content of a tokenizer.json; `file_name` begins the messages of errors.
  static Tokenizer parse(std::string_view content, const std::string& file_name);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// The ids of `text`, which must be UTF-8; an Error names the offset of a wrong byte. With
  /// `add_special_tokens`, the ids of the post-processor (<s>) are added. Added tokens in the text
  /// are found in any case.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;

  /// The largest id + 1.
  int64_t vocab_size() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace aqhost
