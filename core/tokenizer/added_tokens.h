#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/field.h"
#include "tokenizer/bpe.h"
#include "tokenizer/normalizer.h"

namespace aqhost {

/// The `added_tokens` of tokenizer.json. They are found in the text before anything else: tokens
/// that are not `normalized` in the text as given, the others in the normalised parts between them.
/// The leftmost match wins, then the longest. Const functions are thread-safe.
class AddedTokens {
 public:
  AddedTokens(const Field& config, const Bpe& model, const Normalizer& normalizer);

  /// A part of the text: an added token, or the text between two of them.
  struct Part {
    size_t begin, end;
    std::optional<int32_t> id;
  };
  std::vector<Part> split_raw(std::string_view text) const { return raw_.split(text); }
  std::vector<Part> split_normalized(std::string_view text) const {
    return normalized_.split(text);
  }

  /// -1 if there are none.
  int32_t largest_id() const { return largest_id_; }
  std::optional<int32_t> token_id(std::string_view token) const;

 private:
  struct Token {
    int32_t id;
    bool single_word, lstrip, rstrip;
  };
  /// A set of tokens, as a tree over their bytes.
  class Trie {
   public:
    void add(std::string_view content, const Token& token);
    std::vector<Part> split(std::string_view text) const;

   private:
    struct Node {
      std::vector<std::pair<char, size_t>> children;  ///< indexed by byte
      std::optional<size_t> token;
    };
    struct Found {
      size_t begin, end;
      const Token* token;
    };
    std::optional<Found> find(std::string_view text, size_t from) const;

    std::vector<Node> nodes_ = std::vector<Node>(1);
    std::vector<Token> tokens_;
    std::array<bool, 256> first_{};  ///< the bytes with which tokens begin
  };

  Trie raw_, normalized_;
  StringMap<int32_t> ids_;
  int32_t largest_id_ = -1;
};

}  // namespace aqhost
