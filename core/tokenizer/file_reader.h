#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// The content of tokenizer.json. Its two large tables are read into vectors, because reading them
/// as trees of JSON values would take most of the time. The rest is as parse_json() returns it.
struct TokenizerFile {
  using Merge = std::pair<std::string, std::string>;

  Json rest;  ///< without model.vocab and model.merges, if these are below
  std::optional<std::vector<std::pair<std::string, int32_t>>> vocab;  ///< in the order of the file
  std::optional<std::vector<Merge>> merges;                           ///< by rank
};

/// Throws the errors of parse_json(), and Errors for ids that do not fit an int32 and merges that
/// are not pairs. All begin with `where`, the file's name.
TokenizerFile parse_tokenizer_file(std::string_view text, const std::string& where);

}  // namespace aqhost
