#include "export/targets.h"

#include <algorithm>

#include "base/pattern.h"

namespace aqhost {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Turns `name` into a pattern in which all numbers after the first `keep` become any number. A
/// number is a whole component of a name: "layers.3.mlp.experts.12.w1" has two.
std::string generalize(const std::string& name, std::size_t keep) {
  std::string pattern = "re:";
  std::size_t number = 0;
  for (std::size_t i = 0; i < name.size();) {
    const bool starts = is_digit(name[i]) && (i == 0 || name[i - 1] == '.');
    std::size_t end = i;
    while (end < name.size() && is_digit(name[end])) end++;
    if (starts && (end == name.size() || name[end] == '.')) {
      pattern += number++ < keep ? name.substr(i, end - i) : "\\d+";
      i = end;
    } else if (name[i] == '.') {
      pattern += "\\.";
      i++;
    } else {
      pattern += name[i++];
    }
  }
  return pattern + "$";
}

/// The maximum number of numbers in a name. An expert's name has two, the name of an attention's
/// module one.
constexpr std::size_t kMaximumNumbers = 3;

}  // namespace

std::set<std::string> targets_for(const std::vector<std::string>& mine,
                                  const std::vector<std::string>& others) {
  // The patterns of the others at each level. A pattern is safe if no other module has the same
  // pattern.
  std::vector<std::set<std::string>> taken(kMaximumNumbers);
  for (const std::string& name : others)
    for (std::size_t keep = 0; keep < kMaximumNumbers; keep++)
      taken[keep].insert(generalize(name, keep));
  std::set<std::string> targets;
  for (const std::string& name : mine) {
    std::string target = name;
    for (std::size_t keep = 0; keep < kMaximumNumbers && target == name; keep++)
      if (std::string p = generalize(name, keep); !taken[keep].contains(p)) target = std::move(p);
    targets.insert(std::move(target));
  }
  return targets;
}

std::set<std::string> patterns_for(const std::vector<std::string>& mine,
                                   const std::vector<std::string>& others) {
  std::set<std::string> patterns;
  for (const std::string& target : targets_for(mine, others))
    patterns.insert(
        (target.starts_with("re:") ? target : generalize(target, kMaximumNumbers)).substr(3));
  return patterns;
}

StartPattern::StartPattern(const std::string& pattern, const std::string& where)
    : regex_(compile_regex(pattern, where)) {}

bool StartPattern::matches(const std::string& name) const {
  return std::regex_search(name, regex_, std::regex_constants::match_continuous);
}

Targets::Targets(const Field& list) {
  for (const Field& target : list.items()) {
    const std::string& text = target.text();
    if (text.starts_with("re:"))
      patterns_.emplace_back(text.substr(3), target.where());
    else
      names_.insert(text);
  }
}

bool Targets::has_pattern(const std::string& module) const {
  return std::any_of(patterns_.begin(), patterns_.end(),
                     [&module](const StartPattern& p) { return p.matches(module); });
}

}  // namespace aqhost
