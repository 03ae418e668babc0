#include "config/recipe.h"

#include <algorithm>
#include <array>
#include <set>

#include "base/error.h"

namespace aqhost {
namespace {

/// Keys that describe a format and mean nothing to another.
constexpr std::array kFormatKeys{"symmetric", "element", "scale_rule", "scale_dtype"};
constexpr int64_t kDefaultGroupSize = 128;

bool is_full_precision(const std::string& id) {
  return id == "bf16" || id == "fp16" || id == "fp32";
}

bool only_wildcards(const std::string& pattern) {
  return pattern.find_first_not_of("*?.") == std::string::npos || pattern == "re:.*";
}

}  // namespace

bool glob_match(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      p++;
      t++;
    } else if (star != std::string_view::npos) {  // let the last star take one more
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

bool Recipe::Row::matches(const std::string& module) const {
  return regex ? std::regex_match(module, *regex) : glob_match(pattern, module);
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
    recipe.named = recipe.named || !only_wildcards(row.pattern);
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
  for (std::size_t i = 0; i < overrides_.size(); i++) {
    const Row& row = overrides_[i];
    bool matched = false, used = false;
    for (const std::string& module : modules) {
      if (used || !row.matches(module)) continue;
      matched = true;
      for (const auto& [key, value] : row.keys.items())
        used = used || std::none_of(overrides_.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                                    overrides_.end(), [&, k = key](const Row& later) {
                                      return later.keys.contains(k) && later.matches(module);
                                    });
    }
    if (!matched)
      warnings.push_back(
          {row.where, fmt::format("the pattern \"{}\" matches no module", row.pattern)});
    else if (!used)
      warnings.push_back({row.where, fmt::format("the override \"{}\" has no effect: later ones "
                                                 "replace all it says",
                                                 row.pattern)});
  }
  return warnings;
}

}  // namespace aqhost
