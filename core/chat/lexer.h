#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace aqhost::jinja {

enum class TokenKind {
  kText,            // outside of tags
  kOutputBegin,     // {{
  kOutputEnd,       // }}
  kStatementBegin,  // {%
  kStatementEnd,    // %}
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;  // of a string, its value
  int64_t line;      // from 1 on
};

/// An Error whose message begins with "line N: ".
class LineError : public Error {
 public:
  using Error::Error;
};
[[noreturn]] void fail_at(int64_t line, const std::string& message);

/// The tokens of a template, as Jinja with trim_blocks and lstrip_blocks (which transformers sets)
/// divides it; the last one is kEnd. Comments are left out, and raw blocks are text.
std::vector<Token> tokenize(const std::string& source);

}  // namespace aqhost::jinja
