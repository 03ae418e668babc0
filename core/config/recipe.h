#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// What a recipe says about one module, with defaults filled in.
struct ModuleRecipe {
  bool skip = false;               // the module stays as it is (also wq: bf16, fp16, fp32)
  std::string wq = "int4";         // id of the weight format
  std::string aq = "bf16";         // id of the activation format; "bf16": not rounded
  Json options = Json::object();   // of the weight format: group_size, symmetric, element ...
  std::string algorithm = "gptq";  // or "rtn"
  double routing_power = 1;        // exponent of the routing weight in Hessians, 0 to 4
  int64_t refine_steps = 0;        // steps of learned rounding after the solve; 0: none
  int64_t refine_batch = 16;       // windows per step
  bool named = false;  // an override that says how weights are stored ends in the module's own name
  bool group_size_asked = false;  // set by the row that sets this wq, or by a later one
};

/// Settings of the whole run.
struct RunSettings {
  bool sequential = true;              // later stages and layers see earlier ones quantized
  bool actorder = true;                // static act-order
  double percdamp = 0.1;               // damping, relative to the mean of the diagonal
  double error_feedback = 0.75;        // share of earlier layers' errors that is made up for
  std::optional<int64_t> min_tokens;   // per expert; none: half of its input features
  bool calibrate_all_experts = false;  // every expert sees every token, without weights
  bool strict = false;                 // an indivisible group size is an error
};

/// A warning about a recipe, with file and line.
struct RecipeWarning {
  std::string where;  // "olmoe_int4.yaml:7"
  std::string message;
};

/// A quantization recipe in YAML or JSON (configs/README.md is its guide):
///   default: {wq: int4, aq: bf16, group_size: 128}
///   overrides: [{pattern: "*.mlp.experts.*", wq: mxfp4, group_size: 32},
///               {pattern: ..., skip: true}]
/// Patterns are globs over module names (`*` also matches dots, `?` is one character) or, after
/// "re:", regular expressions that must match the whole name (base/pattern.h). Later overrides win,
/// key by key. If a later row changes wq, the keys that describe a format (symmetric, element,
/// scale_rule, scale_dtype) are dropped, but group_size is kept. `refine: {steps: 200}` adds
/// learned rounding to the matching modules (run/refine.h). A default-constructed recipe is an
/// empty one: int4, group size 128.
class Recipe {
 public:
  Recipe() = default;
  /// An Error names the file, the line and the nearest known name. Errors are wrong syntax, unknown
  /// keys, wrong types and values out of range.
  static Recipe load(const std::filesystem::path& path);
  static Recipe parse(const std::string& text, const std::string& file_name);

  /// The name of the recipe's file; "" for a default-constructed recipe.
  const std::string& file() const { return file_; }
  /// Its text; "" for a default-constructed recipe.
  const std::string& text() const { return text_; }
  ModuleRecipe resolve(const std::string& module) const;
  /// "file:line" of the row from which resolve() takes `key` for the module; "" if no row sets it.
  std::string where(const std::string& module, const std::string& key) const;
  const RunSettings& settings() const { return settings_; }
  /// Every format id that a `wq` names, with its place ("file:line"), so that it can be checked
  /// against the plugins.
  std::vector<std::pair<std::string, std::string>> formats() const;
  /// The same for every `aq` except bf16.
  std::vector<std::pair<std::string, std::string>> activation_formats() const;
  /// Warns of overrides that match none of `modules`, or that have no effect there (because later
  /// overrides replace every key, or because the modules are skipped). Also warns of overrides
  /// whose wq is replaced in most of their modules by a later override that is not just narrower.
  /// `kept` says which modules the model family does not quantize unless an override names them
  /// (empty: none). If more than 10 overrides have the same fault, one warning counts the rest. The
  /// time is proportional to the number of modules times the number of patterns with wildcards, and
  /// to the number of pairs of overrides that match a common module.
  std::vector<RecipeWarning> lint(const std::vector<std::string>& modules,
                                  const std::vector<bool>& kept = {}) const;

 private:
  friend class RecipeParser;

  /// One row: the keys that it sets, and its place in the file.
  struct Row {
    std::string pattern, where;
    std::optional<std::regex> regex;  // for "re:" patterns
    Json keys = Json::object();
    std::map<std::string, std::string> key_where;  // "file:line" of each key

    /// Whether the pattern is the name of one module, without a wildcard.
    bool is_exact() const { return !regex && pattern.find_first_of("*?") == std::string::npos; }
    bool matches(const std::string& module) const;
    /// Whether a key says how weights are stored, or that they stay as they are.
    bool sets_weights() const;
    /// Whether sets_weights() is true, and the pattern ends in the last part of the module's name,
    /// spelled out. Only such an override quantizes a module that the family does not quantize by
    /// default.
    bool names(const std::string& module) const;
    bool skips() const;
  };
  struct Matches;
  static void apply(const Json& keys, ModuleRecipe& recipe);
  void add_override(Row row);
  /// The indices of the overrides that match, in order.
  std::vector<std::size_t> matching(const std::string& module) const;
  Matches match_all(const std::vector<std::string>& modules, const std::vector<bool>& kept) const;
  bool crosses(std::size_t i, std::size_t j, const Matches& matches) const;
  std::string lint_row(std::size_t i, const Matches& matches) const;

  std::string file_, text_;
  Row default_;
  std::vector<Row> overrides_;
  std::unordered_map<std::string, std::vector<std::size_t>> exact_;  // overrides for one name
  std::vector<std::size_t> wild_;                                    // all other overrides
  RunSettings settings_;
};

}  // namespace aqhost
