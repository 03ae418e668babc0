#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/field.h"

namespace aqhost {

/// A stretch [begin, end) of bytes, and whether the pattern matched it.
struct Span {
  size_t begin, end;
  bool is_match;
};

/// A regular expression in Oniguruma's Ruby dialect (which tokenizer.json is written in), run by
/// PCRE2's JIT compiler. Const functions may be called from any thread.
class Regex {
 public:
  /// `where` begins the message of the Error for a pattern that is wrong or not supported.
  Regex(std::string_view pattern, const std::string& where);
  /// A pattern that stands for itself.
  static Regex literal(std::string_view text, const std::string& where);

  /// Cuts the whole of `text` (well-formed UTF-8) into matches and what lies between them, in
  /// order, into `spans`. Empty matches are spans too, save directly after another match.
  void split(std::string_view text, std::vector<Span>& spans) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  static std::shared_ptr<const Code> compile(std::string_view pattern, bool literal,
                                             std::string_view shown, const std::string& where);
  bool find(std::string_view text, size_t from, Span& match) const;

  std::shared_ptr<const Code> code_;
};

/// {"Regex": "..."} or {"String": "..."}, as Split and Replace have it.
Regex read_pattern(const Field& config);

}  // namespace aqhost
