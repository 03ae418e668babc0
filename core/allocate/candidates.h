#pragma once

#include <string>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// A format that a part may get.
struct Candidate {
  std::string text;  // as the user wrote it: "int4", "int2:group_size=32"
  Json keys;         // of a recipe's row: {"wq": "int2", "group_size": 32}

  /// Whether it leaves modules as they are.
  bool dense() const;
};

/// Reads a list such as "int2:group_size=32,int4,bf16". Each candidate is a value of `wq`, and may
/// have further keys of a recipe's row that describe a format. Whatever is wrong is a UsageError or
/// an Error that names the candidate.
std::vector<Candidate> parse_candidates(const std::string& list);

/// A recipe whose rows say nothing about the formats of weights, nor which modules are skipped.
/// Rows that do are appended.
class BaseRecipe {
 public:
  struct Row {
    std::string pattern;
    Json keys;
    std::string comment;  // of one line; "" if there is none
  };

  /// The recipe without settings.
  BaseRecipe() = default;
  /// Reads the file of a recipe, which Recipe::load() has accepted, and removes `wq`, `skip` and
  /// the keys that describe formats; group_size stays.
  explicit BaseRecipe(const std::string& file);

  /// The recipe in YAML, with `rows` after its own, and with `comment`, whose lines come first.
  std::string with(const std::vector<Row>& rows, const std::string& comment = {}) const;

 private:
  Json root_ = Json::object();
};

/// Patterns that together match exactly `names`, of all the names of modules in `all`. Numbers and
/// the last parts of names are joined where possible, as in "model.layers.*.self_attn.o_proj" or
/// "re:model\.layers\.(0|3)\.mlp\.experts\.\d+\.(down_proj|up_proj)". If `spelled_out`, every
/// pattern ends in the last part of the names that it matches (see Recipe, modules that the family
/// keeps).
std::vector<std::string> patterns_for(const std::vector<std::string>& names,
                                      const std::vector<std::string>& all, bool spelled_out);

}  // namespace aqhost
