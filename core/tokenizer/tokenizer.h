#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace aqhost {

/// Text to ids exactly as Hugging Face's tokenizers library does it from tokenizer.json (BPE
/// models). A feature of the file that is not supported is an Error that names it. The `truncation`
/// and `padding` sections are not applied. tokenizer_config.json is not read: where there is a
/// tokenizer.json, transformers 5 ignores the other's add_bos_token and add_eos_token, and
/// tokenizer.json's post_processor alone decides. Const functions may be called from any thread.
class Tokenizer {
 public:
  /// `directory` holds tokenizer.json.
  static Tokenizer load(const std::filesystem::path& directory);
  /// From the content of a tokenizer.json; `file_name` begins the messages of errors.
  static Tokenizer parse(std::string_view content, const std::string& file_name);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of `text` (UTF-8; Error with the byte's offset where it is not). With special tokens the
  /// post-processor's (<s>) are added; added tokens that stand in the text are found either way.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const;

  /// Largest id + 1.
  int64_t vocab_size() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace aqhost
