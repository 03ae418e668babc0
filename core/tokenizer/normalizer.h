#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/field.h"

namespace aqhost {

/// A part of the text on its way through the tokenizer.
struct Normalized {
  std::string text;
  /// Whether its first character comes from the very beginning of the text given to encode().
  bool at_origin = true;
};

/// The `normalizer` of tokenizer.json: NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace and
/// Sequence. Const functions are thread-safe.
class Normalizer {
 public:
  /// If `config` is null, nothing is changed.
  explicit Normalizer(const Field& config);

  void apply(Normalized& text) const;

 private:
  using Step = std::function<void(Normalized&)>;
  void add(const Field& config);

  std::vector<Step> steps_;
};

}  // namespace aqhost
