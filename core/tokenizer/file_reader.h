#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// tokenizer.json. Its two large tables are read into vectors (as a tree of JSON values they would
/// take most of the time), the rest is as parse_json() gives it.
struct TokenizerFile {
  using Merge = std::pair<std::string, std::string>;

  Json rest;  ///< without model.vocab and model.merges where these are below
  std::optional<std::vector<std::pair<std::string, int32_t>>> vocab;  ///< in the file's order
  std::optional<std::vector<Merge>> merges;                           ///< by rank
};

/// Errors are parse_json()'s, and those of ids that are no int32 and merges that are no pairs; all
/// begin with `where`, the file's name.
TokenizerFile parse_tokenizer_file(std::string_view text, const std::string& where);

}  // namespace aqhost
