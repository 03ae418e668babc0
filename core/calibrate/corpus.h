#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "base/json.h"
#include "tokenizer/tokenizer.h"

namespace aqhost {

/// A file to calibrate on, and its part of the windows.
struct CorpusFile {
  std::filesystem::path path;
  double weight = 1;
};

/// "FILE", or "FILE=WEIGHT" where no file bears the whole name. UsageError where WEIGHT is a number
/// but not above 0.
CorpusFile parse_corpus_file(const std::string& value);

/// The windows of one file, and what they were cut from.
struct FileWindows {
  at::Tensor ids;         // [n, length] i64
  int64_t documents = 0;  // in the file
  int64_t tokens = 0;     // in all documents
  int64_t joined = 0;     // the last windows, which hold several documents
  int64_t unused = 0;     // tokens that fill no window
  int64_t chats = 0;      // documents that are chats
};

/// "499 of 500 documents ...": what was joined, for people; empty where nothing was.
std::string describe_joined(const FileWindows& file, std::optional<int64_t> separator);

/// The id that stands between documents in one window: config.json's eos_token_id, or else its
/// bos_token_id; none if it has neither within the vocabulary.
std::optional<int64_t> document_separator(const Json& config, int64_t vocab_size);

/// Reads texts and token ids as windows of one length. What a file is, its content tells (see
/// recognise() in documents.h):
///   JSON          lines, an array or one object: documents (see for_json_documents())
///   .npy          ids, integers [tokens] (one document) or [documents, tokens]
///   .safetensors  ids, likewise: "input_ids", with the "attention_mask" beside it, if any, which
///                 takes away padding; or, without one of that name, every tensor
///   text          in UTF-8, one document
/// Used by one thread.
class CorpusReader {
 public:
  /// `model` is the model's folder: its tokenizer is opened when the first text comes.
  CorpusReader(std::filesystem::path model, int64_t vocab_size,
               std::optional<int64_t> separator = {});

  /// Every document is cut into consecutive windows. What is left of documents, which is all of
  /// those shorter than a window, is joined in order, with the separator between two, and cut into
  /// the last windows; what is left of that is not used. No window is padded, and no other special
  /// tokens are added. Error if there is not one window, and, with file and place, where a document
  /// is no UTF-8 or an id is outside the vocabulary.
  FileWindows read(const std::filesystem::path& file, int64_t length);
  at::Tensor windows(const std::filesystem::path& file, int64_t length) {
    return read(file, length).ids;
  }
  std::optional<int64_t> separator() const { return separator_; }

 private:
  const Tokenizer& tokenizer();

  std::filesystem::path model_;
  int64_t vocab_size_;
  std::optional<int64_t> separator_;
  std::optional<Tokenizer> tokenizer_;
};

}  // namespace aqhost
