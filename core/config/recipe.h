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

/// What a recipe says about one module, defaults filled in.
struct ModuleRecipe {
  bool skip = false;               // stays as it is (also wq: bf16, fp16, fp32)
  std::string wq = "int4";         // id of the weight format
  std::string aq = "bf16";         // id of the activation format; "bf16": none
  Json options = Json::object();   // of the weight format: group_size, symmetric, element ...
  std::string algorithm = "gptq";  // or "rtn"
  double routing_power = 1;        // of the routing weight in Hessians: 0, 1 or 2, or between
  int64_t refine_steps = 0;        // of learned rounding after the solve; 0: none
  int64_t refine_batch = 16;       // windows a step
  bool named = false;  // an override that says how weights are stored ends in the module's own name
  bool group_size_asked = false;  // a row sets it for this wq: the one that sets wq, or a later one
};

/// Settings of the whole run.
struct RunSettings {
  bool sequential = true;              // later stages and layers see earlier ones quantized
  bool actorder = true;                // static act-order
  double percdamp = 0.1;               // damping, of the mean diagonal
  double error_feedback = 0.75;        // share of earlier layers' error a layer makes up for
  std::optional<int64_t> min_tokens;   // per expert; none: half of its input features
  bool calibrate_all_experts = false;  // every expert sees every token, unweighted
  bool strict = false;                 // an indivisible group size is an error
};

/// A warning about a recipe, with file and line.
struct RecipeWarning {
  std::string where;  // "olmoe_int4.yaml:7"
  std::string message;
};

/// A quantization recipe in YAML or JSON (configs/README.md is its guide):
///   default: {wq: int4, aq: bf16, group_size: 128}
///   overrides: [{pattern: "*.mlp.experts.*", wq: mxfp4, group_size: 32}, {pattern: ..., skip:
///   true}]
/// Patterns are globs over module names (`*` crosses dots, `?` is one character) or, after "re:",
/// regular expressions (base/pattern.h, the whole name). Later overrides win key by key; what
/// describes a format (symmetric, element, scale_rule, scale_dtype) is dropped where a later row
/// changes wq, and group_size is kept. `refine: {steps: 200}` adds learned rounding to those
/// modules (run/refine.h). A default-constructed recipe is the one with nothing in it:
/// int4, group 128.
class Recipe {
 public:
  Recipe() = default;
  /// Error with file, line and the nearest known name: syntax, unknown keys, wrong types, values
  /// out of range.
  static Recipe load(const std::filesystem::path& path);
  static Recipe parse(const std::string& text, const std::string& file_name);

  ModuleRecipe resolve(const std::string& module) const;
  /// "file:line" of the `key` that resolve() takes for the module; "" where no row sets it.
  std::string where(const std::string& module, const std::string& key) const;
  const RunSettings& settings() const { return settings_; }
  /// Every format id that a `wq` names, with where ("file:line"), for checking against what is
  /// loaded.
  std::vector<std::pair<std::string, std::string>> formats() const;
  /// The same of every `aq` but bf16.
  std::vector<std::pair<std::string, std::string>> activation_formats() const;
  /// Overrides that match none of `modules`, or have no effect there (later ones replace every
  /// key, or the modules are skipped); and those whose wq a later override, one that
  /// is not just narrower, replaces in most of the modules. `kept` says which modules the model
  /// family keeps as they are unless an override names them (empty: none). Of more than 10
  /// overrides with the same fault the rest are counted in one warning. Takes time in proportion
  /// to the number of modules times the number of patterns with wildcards, and to the number of
  /// pairs of overrides that match one module.
  std::vector<RecipeWarning> lint(const std::vector<std::string>& modules,
                                  const std::vector<bool>& kept = {}) const;

 private:
  friend class RecipeParser;

  /// One row: the keys it sets, and where it stands.
  struct Row {
    std::string pattern, where;
    std::optional<std::regex> regex;  // of "re:" patterns
    Json keys = Json::object();
    std::map<std::string, std::string> key_where;  // "file:line" of each key

    /// Whether the pattern is one module's name, without a wildcard.
    bool is_exact() const { return !regex && pattern.find_first_of("*?") == std::string::npos; }
    bool matches(const std::string& module) const;
    /// Whether a key says how weights are stored, or whether they stay as they are.
    bool sets_weights() const;
    /// Whether sets_weights(), and the pattern ends in the last part of the module's name, spelled
    /// out: what a family keeps at full precision is quantized by such an override alone.
    bool names(const std::string& module) const;
    bool skips() const;
  };
  struct Matches;
  static void apply(const Json& keys, ModuleRecipe& recipe);
  void add_override(Row row);
  /// The overrides that match, by index, in order.
  std::vector<std::size_t> matching(const std::string& module) const;
  Matches match_all(const std::vector<std::string>& modules, const std::vector<bool>& kept) const;
  bool crosses(std::size_t i, std::size_t j, const Matches& matches) const;
  std::string lint_row(std::size_t i, const Matches& matches) const;

  Row default_;
  std::vector<Row> overrides_;
  std::unordered_map<std::string, std::vector<std::size_t>> exact_;  // overrides of one name
  std::vector<std::size_t> wild_;                                    // all others
  RunSettings settings_;
};

}  // namespace aqhost
