#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

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

/// Reads texts and token ids as windows of one length. A file is, by the end of its name:
///   .jsonl        an object a line, whose "text" is a document
///   .npy          ids, integers [tokens] (one document) or [documents, tokens]
///   .safetensors  ids, likewise: "input_ids", with the "attention_mask" beside it, if any, which
///                 takes away padding; or, without one of that name, every tensor
///   any other     UTF-8 text, one document
/// Used by one thread.
class CorpusReader {
 public:
  /// `model` is the model's folder: its tokenizer is opened when the first text comes.
  CorpusReader(std::filesystem::path model, int64_t vocab_size);

  /// Every document cut into consecutive windows, as [n, length] i64: a window lies in one
  /// document, is never padded, and what is left of a document is dropped; special tokens are not
  /// added. Error if there is not one window, and, with file and place, where a document is no
  /// UTF-8 or an id is outside the vocabulary.
  at::Tensor windows(const std::filesystem::path& file, int64_t length);

 private:
  const Tokenizer& tokenizer();

  std::filesystem::path model_;
  int64_t vocab_size_;
  std::optional<Tokenizer> tokenizer_;
};

}  // namespace aqhost
