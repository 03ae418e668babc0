#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/field.h"

namespace aqhost {

/// A range [begin, end) of bytes, and whether the pattern matched it.
struct Span {
  size_t begin, end;
  bool is_match;
};

/// A regular expression in Oniguruma's Ruby dialect (that of tokenizer.json), run by PCRE2's JIT
/// compiler. Const functions are thread-safe.
class Regex {
 public:
  /// Throws an Error that begins with `where` if the pattern is wrong or not supported.
  Regex(std::string_view pattern, const std::string& where);
  /// A pattern that matches exactly `text`.
  static Regex literal(std::string_view text, const std::string& where);

  /// Splits all of `text` (well-formed UTF-8) into matches and the parts between them, in order.
  /// Empty matches are spans too, unless they directly follow another match.
  void split(std::string_view text, std::vector<Span>& spans) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  static std::shared_ptr<const Code> compile(std::string_view pattern, bool literal,
                                             std::string_view shown, const std::string& where);
  bool find(std::string_view text, size_t from, Span& match) const;

  std::shared_ptr<const Code> code_;
};

/// Reads {"Regex": "..."} or {"String": "..."}, as in Split and Replace.
Regex read_pattern(const Field& config);

}  // namespace aqhost
