#pragma once

#include <filesystem>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
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
  bool named = false;              // an override's pattern ends in the module's own name
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
/// modules (pipeline/refine.h). A default-constructed recipe is the one with nothing in it:
/// int4, group 128.
class Recipe {
 public:
  Recipe() = default;
  /// Error with file, line and the nearest known name: syntax, unknown keys, wrong types, values
  /// out of range.
  static Recipe load(const std::filesystem::path& path);
  static Recipe parse(const std::string& text, const std::string& file_name);

  ModuleRecipe resolve(const std::string& module) const;
  const RunSettings& settings() const { return settings_; }
  /// Every format id named, with where ("file:line"), for checking against what is loaded.
  std::vector<std::pair<std::string, std::string>> formats() const;
  /// Overrides that set nothing, match none of `modules`, or have no effect there (later ones
  /// replace every key, or the modules are skipped); and those whose wq a later override, one that
  /// is not just narrower, replaces in most of the modules.
  std::vector<RecipeWarning> lint(const std::vector<std::string>& modules) const;

 private:
  friend class RecipeParser;

  /// One row: the keys it sets, and where it stands.
  struct Row {
    std::string pattern, where;
    std::optional<std::regex> regex;  // of "re:" patterns
    Json keys = Json::object();

    bool matches(const std::string& module) const;
    /// Whether the pattern ends in the last part of the module's name, spelled out.
    bool names(const std::string& module) const;
    bool skips() const;
  };
  static void apply(const Json& keys, ModuleRecipe& recipe);
  std::string lint_row(std::size_t i, const std::vector<std::vector<bool>>& matches,
                       const std::vector<bool>& skipped) const;

  Row default_;
  std::vector<Row> overrides_;
  RunSettings settings_;
};

}  // namespace aqhost
