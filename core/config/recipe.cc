#include "config/recipe.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "base/error.h"
#include "base/pattern.h"

namespace aqhost {
namespace {

/// Keys that describe a format and have no meaning for another format.
constexpr std::array kFormatKeys{"symmetric", "element", "scale_rule", "scale_dtype"};
constexpr int64_t kDefaultGroupSize = 128;

bool is_full_precision(const std::string& id) {
  return id == "bf16" || id == "fp16" || id == "fp32";
}

constexpr std::size_t kMaximumAlike =
    10;  // overrides with the same fault that are named one by one

}  // namespace

bool Recipe::Row::matches(const std::string& module) const {
  return regex ? std::regex_match(module, *regex) : glob_match(pattern, module);
}

bool Recipe::Row::sets_weights() const {
  const auto has = [&](const char* key) { return keys.contains(key); };
  return has("wq") || has("group_size") || has("skip") ||
         std::any_of(kFormatKeys.begin(), kFormatKeys.end(), has);
}

bool Recipe::Row::names(const std::string& module) const {
  if (!sets_weights()) return false;
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
    recipe.group_size_asked = false;
    for (const char* key : kFormatKeys) recipe.options.erase(key);
  }
  recipe.group_size_asked = recipe.group_size_asked || keys.contains("group_size");
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

/// Which overrides match which modules, and what happens to the modules.
struct Recipe::Matches {
  std::vector<std::vector<std::size_t>> of_row;     // [override]: the modules, in order
  std::vector<std::vector<std::size_t>> of_module;  // [module]: the overrides, in order
  std::vector<bool> skipped;                        // [module]: it is not quantized
  /// [module]: the override that names the module, if the family does not quantize the module by
  /// default and exactly one override names it; otherwise SIZE_MAX
  std::vector<std::size_t> only_namer;
  std::vector<std::string> names;  // [module]
};

void Recipe::add_override(Row row) {
  if (row.is_exact())
    exact_[row.pattern].push_back(overrides_.size());
  else
    wild_.push_back(overrides_.size());
  overrides_.push_back(std::move(row));
}

std::vector<std::size_t> Recipe::matching(const std::string& module) const {
  std::vector<std::size_t> rows;
  for (const std::size_t i : wild_)
    if (overrides_[i].matches(module)) rows.push_back(i);
  const auto exact = exact_.find(module);
  if (exact == exact_.end()) return rows;
  const auto middle = static_cast<std::ptrdiff_t>(rows.size());
  rows.insert(rows.end(), exact->second.begin(), exact->second.end());
  std::inplace_merge(rows.begin(), rows.begin() + middle, rows.end());
  return rows;
}

ModuleRecipe Recipe::resolve(const std::string& module) const {
  ModuleRecipe recipe;
  recipe.options["group_size"] = kDefaultGroupSize;
  apply(default_.keys, recipe);
  for (const std::size_t i : matching(module)) {
    apply(overrides_[i].keys, recipe);
    recipe.named = recipe.named || overrides_[i].names(module);
  }
  recipe.skip = recipe.skip || is_full_precision(recipe.wq);
  return recipe;
}

std::string Recipe::where(const std::string& module, const std::string& key) const {
  const std::vector<std::size_t> rows = matching(module);
  const Row* row = &default_;
  for (const std::size_t i : rows)
    if (overrides_[i].keys.contains(key)) row = &overrides_[i];
  const auto found = row->key_where.find(key);
  return found == row->key_where.end() ? "" : found->second;
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

std::vector<std::pair<std::string, std::string>> Recipe::activation_formats() const {
  std::vector<std::pair<std::string, std::string>> found;
  const auto add = [&](const Row& row) {
    if (row.keys.contains("aq") && row.keys["aq"] != "bf16")
      found.emplace_back(row.keys["aq"].get<std::string>(), row.where);
  };
  add(default_);
  for (const Row& row : overrides_) add(row);
  return found;
}

Recipe::Matches Recipe::match_all(const std::vector<std::string>& modules,
                                  const std::vector<bool>& kept) const {
  Matches matches;
  matches.names = modules;
  matches.of_row.resize(overrides_.size());
  for (std::size_t m = 0; m < modules.size(); m++) {
    matches.of_module.push_back(matching(modules[m]));
    const bool keeps = !kept.empty() && kept[m];
    std::size_t namers = 0, namer = 0;
    for (const std::size_t i : matches.of_module.back()) {
      matches.of_row[i].push_back(m);
      if (!keeps || !overrides_[i].names(modules[m])) continue;
      namers++;
      namer = i;
    }
    matches.skipped.push_back(resolve(modules[m]).skip || (keeps && namers == 0));
    matches.only_namer.push_back(namers == 1 ? namer : SIZE_MAX);
  }
  return matches;
}

std::vector<RecipeWarning> Recipe::lint(const std::vector<std::string>& modules,
                                        const std::vector<bool>& kept) const {
  const Matches matches = match_all(modules, kept);
  std::vector<RecipeWarning> warnings;
  std::map<std::string, std::vector<std::size_t>> faults;  // overrides, by what is wrong with them
  for (std::size_t i = 0; i < overrides_.size(); i++) {
    const std::string problem = lint_row(i, matches);
    if (problem.empty()) continue;
    std::vector<std::size_t>& alike = faults[problem];
    alike.push_back(i);
    if (alike.size() <= kMaximumAlike)
      warnings.push_back({overrides_[i].where,
                          fmt::format("the pattern \"{}\" {}", overrides_[i].pattern, problem)});
  }
  for (const auto& [problem, alike] : faults)
    if (alike.size() > kMaximumAlike)
      warnings.push_back({overrides_[alike[kMaximumAlike]].where,
                          fmt::format("of {} further patterns, too, each {}",
                                      alike.size() - kMaximumAlike, problem)});
  return warnings;
}

/// Whether override j, a later one, sets another wq than override i, and matches modules that i
/// does not match.
bool Recipe::crosses(std::size_t i, std::size_t j, const Matches& matches) const {
  const Json &a = overrides_[i].keys, &b = overrides_[j].keys;
  if (!a.contains("wq") || !b.contains("wq") || a["wq"] == b["wq"]) return false;
  return !std::all_of(matches.of_row[j].begin(), matches.of_row[j].end(), [&](std::size_t module) {
    const std::vector<std::size_t>& rows = matches.of_module[module];
    return std::binary_search(rows.begin(), rows.end(), i);
  });
}

/// Says what is wrong with override i, or returns "".
std::string Recipe::lint_row(std::size_t i, const Matches& matches) const {
  const Row& row = overrides_[i];
  const std::vector<std::size_t>& matched = matches.of_row[i];
  const bool names = std::any_of(matched.begin(), matched.end(),
                                 [&](std::size_t m) { return matches.only_namer[m] == i; });
  std::unordered_map<std::size_t, bool> crossing;  // by later override
  // whether a key takes effect, and whether one does in a module that is not skipped
  bool kept = names, used = names;
  std::size_t replaced = 0;
  for (const std::size_t m : matched) {
    const std::vector<std::size_t>& rows = matches.of_module[m];
    std::vector<std::string> left;
    for (const auto& [key, value] : row.keys.items()) left.push_back(key);
    bool crossed = false;
    for (auto j = std::upper_bound(rows.begin(), rows.end(), i); j != rows.end(); ++j) {
      const auto [known, added] = crossing.try_emplace(*j, false);
      if (added) known->second = crosses(i, *j, matches);
      crossed = crossed || known->second;
      std::erase_if(left,
                    [&](const std::string& key) { return overrides_[*j].keys.contains(key); });
    }
    kept = kept || !left.empty();
    used = used || (!left.empty() && (!matches.skipped[m] || row.skips()));
    replaced += crossed ? 1 : 0;
  }
  if (matched.empty()) return "matches no module";
  if (!kept) return "has no effect: later ones replace all it sets";
  if (!used) return "has no effect: the modules it matches are skipped";
  if (2 * replaced > matched.size())
    return fmt::format(
        "sets wq: {}, but later ones replace that in {} of the {} modules it matches",
        row.keys["wq"].get<std::string>(), replaced, matched.size());
  return "";
}

}  // namespace aqhost
