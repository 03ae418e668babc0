#include "config/recipe.h"

#include <algorithm>
#include <array>
#include <set>

#include "base/error.h"
#include "base/pattern.h"

namespace aqhost {
namespace {

/// Keys that describe a format and mean nothing to another.
constexpr std::array kFormatKeys{"symmetric", "element", "scale_rule", "scale_dtype"};
constexpr int64_t kDefaultGroupSize = 128;

bool is_full_precision(const std::string& id) {
  return id == "bf16" || id == "fp16" || id == "fp32";
}

/// Whether every module of `inner` is one of `outer`.
bool within(const std::vector<bool>& inner, const std::vector<bool>& outer) {
  for (std::size_t m = 0; m < inner.size(); m++)
    if (inner[m] && !outer[m]) return false;
  return true;
}

}  // namespace

bool Recipe::Row::matches(const std::string& module) const {
  return regex ? std::regex_match(module, *regex) : glob_match(pattern, module);
}

bool Recipe::Row::names(const std::string& module) const {
  std::string_view end = pattern;
  if (regex && end.ends_with('$')) end.remove_suffix(1);
  return end.ends_with(std::string_view(module).substr(module.rfind('.') + 1));
}

bool Recipe::Row::skips() const {
  return keys.value("skip", false) || is_full_precision(keys.value("wq", ""));
}

void Recipe::apply(const Json& keys, ModuleRecipe& recipe) {
  if (const auto wq = keys.find("wq"); wq != keys.end() && *wq != recipe.wq) {
    recipe.wq = wq->get<std::string>();
    for (const char* key : kFormatKeys) recipe.options.erase(key);
  }
  for (const auto& [key, value] : keys.items()) {
    if (key == "aq") recipe.aq = value.get<std::string>();
    if (key == "skip") recipe.skip = value.get<bool>();
    if (key == "algorithm") recipe.algorithm = value.get<std::string>();
    if (key == "routing_power") recipe.routing_power = value.get<double>();
    if (key == "refine") {
      recipe.refine_steps = value.value("steps", int64_t{0});
      recipe.refine_batch = value.value("batch", ModuleRecipe().refine_batch);
    }
    const bool of_format =
        std::find(kFormatKeys.begin(), kFormatKeys.end(), key) != kFormatKeys.end();
    if (key == "group_size" || of_format) recipe.options[key] = value;
  }
}

ModuleRecipe Recipe::resolve(const std::string& module) const {
  ModuleRecipe recipe;
  recipe.options["group_size"] = kDefaultGroupSize;
  apply(default_.keys, recipe);
  for (const Row& row : overrides_) {
    if (!row.matches(module)) continue;
    apply(row.keys, recipe);
    recipe.named = recipe.named || row.names(module);
  }
  recipe.skip = recipe.skip || is_full_precision(recipe.wq);
  return recipe;
}

std::vector<std::pair<std::string, std::string>> Recipe::formats() const {
  std::vector<std::pair<std::string, std::string>> found;
  const auto add = [&](const Row& row) {
    if (row.keys.contains("wq") && !is_full_precision(row.keys["wq"].get<std::string>()))
      found.emplace_back(row.keys["wq"].get<std::string>(), row.where);
  };
  add(default_);
  for (const Row& row : overrides_) add(row);
  return found;
}

std::vector<RecipeWarning> Recipe::lint(const std::vector<std::string>& modules) const {
  std::vector<RecipeWarning> warnings;
  std::vector<std::vector<bool>> matches;  // [override][module]
  for (const Row& row : overrides_) {
    matches.emplace_back();
    for (const std::string& module : modules) matches.back().push_back(row.matches(module));
  }
  std::vector<bool> skipped;
  for (const std::string& module : modules) skipped.push_back(resolve(module).skip);
  for (std::size_t i = 0; i < overrides_.size(); i++) {
    const std::string problem = lint_row(i, matches, skipped);
    if (!problem.empty())
      warnings.push_back({overrides_[i].where,
                          fmt::format("the pattern \"{}\" {}", overrides_[i].pattern, problem)});
  }
  return warnings;
}

/// What is wrong with override i, or "".
std::string Recipe::lint_row(std::size_t i, const std::vector<std::vector<bool>>& matches,
                             const std::vector<bool>& skipped) const {
  const Row& row = overrides_[i];
  if (row.keys.empty()) return "sets nothing";
  std::vector<bool> crosses(overrides_.size());  // another wq, not just for some of the modules
  for (std::size_t j = i + 1; j < overrides_.size(); j++)
    crosses[j] = row.keys.contains("wq") && overrides_[j].keys.contains("wq") &&
                 overrides_[j].keys["wq"] != row.keys["wq"] && !within(matches[j], matches[i]);
  bool kept = false, used = false;  // a key in some module; and where that is not skipped
  int64_t matched = 0, replaced = 0;
  for (std::size_t m = 0; m < skipped.size(); m++) {
    if (!matches[i][m]) continue;
    Json left = row.keys;
    bool crossed = false;
    for (std::size_t j = i + 1; j < overrides_.size(); j++) {
      if (!matches[j][m]) continue;
      crossed = crossed || crosses[j];
      for (const auto& [key, value] : overrides_[j].keys.items()) left.erase(key);
    }
    kept = kept || !left.empty();
    used = used || (!left.empty() && (!skipped[m] || row.skips()));
    matched++;
    replaced += crossed ? 1 : 0;
  }
  if (matched == 0) return "matches no module";
  if (!kept) return "has no effect: later ones replace all it sets";
  if (!used) return "has no effect: the modules it matches are skipped";
  if (2 * replaced > matched)
    return fmt::format(
        "sets wq: {}, but later ones replace that in {} of the {} modules it matches",
        row.keys["wq"].get<std::string>(), replaced, matched);
  return "";
}

}  // namespace aqhost
