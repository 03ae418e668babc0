#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/file_reader.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/post_processor.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/unicode.h"

namespace aqhost {

struct Tokenizer::Impl {
  Impl(const Field& config, TokenizerFile& file)
      : normalizer(config["normalizer"]),
        pre_tokenizer(config["pre_tokenizer"]),
        model(config["model"], file, pre_tokenizer.byte_level()),
        added_tokens(config["added_tokens"], model, normalizer),
        post_processor(config["post_processor"]) {}

  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe model;
  AddedTokens added_tokens;
  PostProcessor post_processor;

  /// Kept between calls. A call that finds it in use works with a cache of its own.
  mutable std::mutex cache_mutex;
  mutable WordCache cache;

  /// Encodes a part of the text that contains no added token that is matched before normalisation.
  void encode_raw(Normalized text, WordCache& words, std::vector<int32_t>& ids) const {
    normalizer.apply(text);
    std::vector<std::string_view> pieces;
    std::deque<std::string> changed;
    for (const AddedTokens::Part& part : added_tokens.split_normalized(text.text)) {
      if (part.id) {
        ids.push_back(*part.id);
        continue;
      }
      const std::string_view view(text.text);
      pre_tokenizer.split(view.substr(part.begin, part.end - part.begin),
                          text.at_origin && part.begin == 0, pieces, changed);
      for (const std::string_view piece : pieces) model.encode(piece, words, ids);
    }
  }

  void encode(std::string_view text, WordCache& words, std::vector<int32_t>& ids) const {
    for (const AddedTokens::Part& part : added_tokens.split_raw(text)) {
      if (part.id) {
        ids.push_back(*part.id);
      } else {
        encode_raw({std::string(text.substr(part.begin, part.end - part.begin)), part.begin == 0},
                   words, ids);
      }
    }
  }
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

namespace {

/// The tokenizers of other kinds that are in a folder, as "tokenizer.model (SentencePiece), ...";
/// empty if there are none.
std::string other_tokenizers(const std::filesystem::path& directory) {
  constexpr std::pair<const char*, const char*> kOthers[] = {
      {"tokenizer.model", "SentencePiece or tiktoken"},
      {"tiktoken.model", "tiktoken"},
      {"spiece.model", "SentencePiece"},
      {"vocab.json", "BPE in two files"},
      {"merges.txt", "BPE in two files"},
      {"vocab.txt", "WordPiece"},
      {"tekken.json", "Tekken"}};
  std::string found;
  const auto add = [&found](const std::string& name, const char* what) {
    found += fmt::format("{}{} ({})", found.empty() ? "" : ", ", name, what);
  };
  for (const auto& [name, what] : kOthers)
    if (std::filesystem::exists(directory / name)) add(name, what);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error))
    if (entry.path().extension() == ".tiktoken") add(entry.path().filename().string(), "tiktoken");
  return found;
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "tokenizer.json";
  if (!std::filesystem::exists(path)) {
    const std::string others = other_tokenizers(directory);
    // AutoTokenizer cannot convert this form: its pattern is only in a Python file of the model.
    const std::string how =
        std::filesystem::exists(directory / "tiktoken.model")
            ? "which transformers.convert_slow_tokenizer makes: "
              "TikTokenConverter(\"tiktoken.model\", "
              "pattern=P, extra_special_tokens=T).converted().save(\"tokenizer.json\"), where P is "
              "the pat_str and T are the special tokens, in the order of their ids, of the model's "
              "own Python class (tokenization_kimi.py)"
            : "which transformers makes of most other forms: "
              "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)";
    fail("{}: there is no such file, {}; expected a tokenizer.json, {}", path.string(),
         others.empty() ? "nor a tokenizer in another form" : "only a tokenizer as " + others, how);
  }
  return parse(read_file(path), path.string());
}

Tokenizer Tokenizer::parse(std::string_view content, const std::string& file_name) {
  TokenizerFile file = parse_tokenizer_file(content, file_name);
  return Tokenizer(std::make_unique<Impl>(Field(file.rest, file_name), file));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (const std::size_t good = utf8_length(text); good < text.size())
    fail("the text is not UTF-8: byte {:#04x} at offset {} is out of place",
         static_cast<unsigned char>(text[good]), good);
  std::vector<int32_t> ids;
  const PostProcessor& post = impl_->post_processor;
  if (add_special_tokens) ids = post.prefix();
  const std::unique_lock lock(impl_->cache_mutex, std::try_to_lock);
  WordCache own;
  impl_->encode(text, lock ? impl_->cache : own, ids);
  if (add_special_tokens) ids.insert(ids.end(), post.suffix().begin(), post.suffix().end());
  return ids;
}

int64_t Tokenizer::vocab_size() const {
  int64_t size = impl_->added_tokens.largest_id() + int64_t{1};
  for (const auto& [token, id] : impl_->model.vocab()) size = std::max(size, int64_t{id} + 1);
  return size;
}

}  // namespace aqhost
