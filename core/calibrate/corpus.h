#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/json.h"
#include "tokenizer/tokenizer.h"

namespace aqhost {

class ChatTemplate;
struct JsonDocument;

/// A file for calibration, and its share of the windows.
struct CorpusFile {
  std::filesystem::path path;
  double weight = 1;
};

/// Parses "FILE", or "FILE=WEIGHT" if no file has the whole text as its name. Throws a UsageError
/// if WEIGHT is a number that is not above 0.
CorpusFile parse_corpus_file(const std::string& value);

/// The windows of one file, and counts of what they were cut from.
struct FileWindows {
  at::Tensor ids;          // [n, length] i64
  int64_t documents = 0;   // in the file
  int64_t tokens = 0;      // in all documents
  int64_t joined = 0;      // the last windows, which contain several documents
  int64_t unused = 0;      // tokens that are in no window
  int64_t chats = 0;       // documents that are chats
  bool templated = false;  // whether the model's chat template was applied to them
};

/// "499 of 500 documents ...": says for the user what was joined; empty if nothing was.
std::string describe_joined(const FileWindows& file, std::optional<int64_t> separator);

/// The id that separates documents in one window: config.json's eos_token_id, or else its
/// bos_token_id; none if neither is there and within the vocabulary.
std::optional<int64_t> document_separator(const Json& config, int64_t vocab_size);

/// Reads texts and token ids as windows of one length. The content of a file decides what it is
/// (see recognise() in documents.h):
///   JSON          lines, an array or one object: documents (see for_json_documents()); a chat is
///                 what the model's chat template makes of it, if the model has one
///   .npy          ids, integers [tokens] (one document) or [documents, tokens]
///   .safetensors  ids, likewise: the tensor "input_ids" (if "attention_mask" is there too, tokens
///                 that it masks are padding and left out), or else every tensor
///   text          in UTF-8, one document
/// Used by one thread.
class CorpusReader {
 public:
  /// `model` is the folder of the model; its tokenizer is opened when the first text is read.
  CorpusReader(std::filesystem::path model, int64_t vocab_size,
               std::optional<int64_t> separator = {});

  /// Cuts every document into consecutive windows. The rests of documents (all of a document that
  /// is shorter than a window) are joined in order, with the separator between two of them, and cut
  /// into the last windows; the rest of that is not used. No window is padded, and no other special
  /// tokens are added. Throws an Error if there is not a single window, and an Error with file and
  /// place if a document is not UTF-8 or an id is outside the vocabulary.
  FileWindows read(const std::filesystem::path& file, int64_t length);
  at::Tensor windows(const std::filesystem::path& file, int64_t length) {
    return read(file, length).ids;
  }
  std::optional<int64_t> separator() const { return separator_; }

 private:
  const Tokenizer& tokenizer();
  /// The chat template of the model, or null.
  const ChatTemplate* chat_template();
  std::string text_of(const JsonDocument& document);

  std::filesystem::path model_;
  int64_t vocab_size_;
  std::optional<int64_t> separator_;
  std::optional<Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplate> chat_template_;
  bool chat_template_read_ = false;
};

}  // namespace aqhost
