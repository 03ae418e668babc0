#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chat/syntax.h"
#include "chat/value.h"

namespace aqhost::jinja {

/// A template in the part of Jinja that chat templates use, with trim_blocks and lstrip_blocks as
/// transformers sets them, and with break, continue and `generation`. What is not supported is an
/// Error that names it and its line, when the template is read (statements) or when it gets there
/// (filters, tests, methods). Time, memory and depth are limited for any template and any values.
class Template {
 public:
  /// Errors begin with `where`. The source has at most 1 MiB and is UTF-8.
  static Template parse(const std::string& source, std::string where);

  /// What the template prints with these variables. The same values give the same text: the date of
  /// strftime_now() is always 1 January 2025. Thread-safe.
  std::string render(const std::vector<std::pair<std::string, Value>>& variables) const;

 private:
  Template(Block body, std::string where) : body_(std::move(body)), where_(std::move(where)) {}

  Block body_;
  std::string where_;
};

}  // namespace aqhost::jinja
