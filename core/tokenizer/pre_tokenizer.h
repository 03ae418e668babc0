#pragma once

#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/field.h"

namespace aqhost {

/// The `pre_tokenizer` of tokenizer.json: ByteLevel, Split, Digits, Metaspace and Sequence. Const
/// functions are thread-safe.
class PreTokenizer {
 public:
  /// If `config` is null, the whole text is one word.
  explicit PreTokenizer(const Field& config);

  /// Whether words must be looked up in ByteLevel's alphabet (byte_level()). split() does not
  /// convert them.
  bool byte_level() const { return byte_level_; }

  /// Appends the words, in order and none of them empty, to `pieces`. They point into `text` or
  /// into `changed`, to which rewritten words are added. `at_origin` is as in Normalized.
  void split(std::string_view text, bool at_origin, std::vector<std::string_view>& pieces,
             std::deque<std::string>& changed) const;

 private:
  struct Output {
    std::vector<std::string_view>& pieces;
    std::deque<std::string>& changed;
    bool at_origin;
  };
  using Step = std::function<void(std::string_view, const Output&)>;
  void add(const Field& config);
  void add_byte_level(const Field& config);
  void add_split(const Field& config);
  void add_metaspace(const Field& config);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

/// `bytes` in ByteLevel's alphabet, in which each byte is a printable character (GPT-2's
/// bytes_to_unicode()).
std::string to_byte_level(std::string_view bytes);

}  // namespace aqhost
