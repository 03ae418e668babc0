#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/field.h"
#include "tokenizer/file_reader.h"

namespace aqhost {

/// Lets strings be looked up without a copy.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <typename Value>
using StringMap = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

/// The ids of words seen before. Must not be shared between threads.
using WordCache = StringMap<std::vector<int32_t>>;

/// The `model` of tokenizer.json, of type BPE (Sennrich et al., arXiv:1508.07909). Merges are
/// applied by rank, leftmost first, in O(n log n) for words of any length. Const functions are
/// thread-safe.
class Bpe {
 public:
  /// `config` is the model without its tables; the tables are moved out of `file`. With
  /// `byte_level`, words are given as bytes and looked up in ByteLevel's alphabet.
  Bpe(const Field& config, TokenizerFile& file, bool byte_level);

  /// Appends the ids of `word` (which is not empty, and well-formed UTF-8) to `ids`.
  void encode(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const;

  std::optional<int32_t> token_id(std::string_view token) const;
  const StringMap<int32_t>& vocab() const { return vocab_; }

 private:
  struct Merge {
    int32_t rank, id;
  };
  using Pair = std::pair<int32_t, int32_t>;
  struct PairHash {
    size_t operator()(Pair pair) const {
      const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(pair.first)) << 32 |
                           static_cast<uint32_t>(pair.second);
      return (key * 0x9E3779B97F4A7C15u) >> 20;
    }
  };
  /// A token of the word that is being merged. Tokens are linked by their positions in a vector.
  struct Symbol {
    int32_t id, previous, next;
  };
  struct Candidate {
    int32_t rank, position, id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };

  void read_vocab(const Field& config, TokenizerFile& file);
  void read_merges(const Field& config, const TokenizerFile& file);
  void encode_cached(std::string_view word, WordCache& cache, std::vector<int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<int32_t>& ids) const;
  std::vector<int32_t> characters(std::string_view word) const;
  bool add_bytes(std::string_view character, std::vector<int32_t>& ids) const;
  void merge(const std::vector<int32_t>& tokens, std::vector<int32_t>& ids) const;
  size_t next_cut(std::string_view word, size_t from) const;

  bool byte_level_, byte_fallback_, fuse_unknown_, ignore_merges_;
  std::optional<int32_t> unknown_;
  StringMap<int32_t> vocab_;
  std::unordered_map<Pair, Merge, PairHash> merges_;
  std::vector<std::optional<int32_t>> byte_ids_;  ///< ids of the tokens <0x00> to <0xFF>
  /// No merge joins U+2581 to a different character before it, so a word may be cut before it.
  bool cuts_at_mark_ = false;
};

}  // namespace aqhost
