#include "allocate/parts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/nearest.h"
#include "plan/export_case.h"

namespace aqhost {
namespace {

/// Sets that can be united.
class Sets {
 public:
  explicit Sets(std::size_t count) : parent_(count) {
    std::iota(parent_.begin(), parent_.end(), std::size_t{0});
  }

  /// The least member of the set that has `i`.
  std::size_t find(std::size_t i) {
    while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
    return i;
  }
  void unite(std::size_t a, std::size_t b) {
    a = find(a);
    b = find(b);
    parent_[std::max(a, b)] = std::min(a, b);
  }

 private:
  std::vector<std::size_t> parent_;
};

/// Unites the modules of which `key_of` returns the same key. It returns std::nullopt for those
/// that are left alone.
template <typename KeyOf>
void unite_by(const Plan& plan, Sets& sets, KeyOf key_of) {
  std::map<typename decltype(key_of(plan.modules.front()))::value_type, std::size_t> first;
  for (std::size_t i = 0; i < plan.modules.size(); i++) {
    if (!plan.modules[i].format) continue;
    const auto key = key_of(plan.modules[i]);
    if (key) sets.unite(first.try_emplace(*key, i).first->second, i);
  }
}

void apply(const OneFormat& rule, const Plan& plan, Sets& sets) {
  unite_by(plan, sets, [&](const PlannedModule& m) -> std::optional<int32_t> {
    const aq_tensor_key& key = m.module->key;
    const bool named = std::any_of(rule.of.begin(), rule.of.end(), [&](const std::string& name) {
      return has_name(key.role, key.expert >= 0, name);
    });
    const bool stored =
        rule.storage.empty() || module_case(m, *plan.container).storage == rule.storage;
    if (!named || !stored) return std::nullopt;
    return rule.of_model ? 0 : key.layer;
  });
}

/// The last part of a module's name without "_proj": "q", "gate", "w1", "lm_head".
std::string short_name(const std::string& name) {
  std::string last = name.substr(name.rfind('.') + 1);
  if (last.ends_with("_proj")) last.resize(last.size() - 5);
  return last;
}

/// "q k v", "experts" (all matrices of the routed experts), "experts down", "shared gate up".
std::string name_of(const AllocatedGroup& part, const Plan& plan) {
  std::vector<std::string> names;
  std::set<int32_t> roles;
  for (const std::size_t i : part.modules) {
    const Module& m = *plan.modules[i].module;
    roles.insert(m.key.role);
    const std::string name = short_name(m.name);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  const int32_t expert = plan.modules[part.modules.front()].module->key.expert;
  const std::string text = fmt::format("{}", fmt::join(names, " "));
  if (expert >= 0) return roles.size() > 2 ? "experts" : "experts " + text;
  return expert == AQ_EXPERT_SHARED ? "shared " + text : text;
}

}  // namespace

std::vector<AllocatedGroup> model_parts(const Plan& plan, const Engine* engine) {
  Sets sets(plan.modules.size());
  unite_by(plan, sets, [](const PlannedModule& m) {
    const auto& [layer, role, expert, part] = m.module->key;
    return std::optional(std::tuple(layer, role, std::min(expert, 0)));
  });
  for (const Engine& e : engines())
    for (const OneFormat& rule : e.one_format)
      if (&e == engine || (engine == nullptr && !rule.of_model)) apply(rule, plan, sets);
  std::map<std::size_t, std::size_t> of_set;
  std::vector<AllocatedGroup> parts;
  for (std::size_t i = 0; i < plan.modules.size(); i++) {
    if (!plan.modules[i].format) continue;
    const int32_t layer = plan.modules[i].module->key.layer;
    const auto [it, added] = of_set.try_emplace(sets.find(i), parts.size());
    if (added) parts.push_back({layer, "", {}});
    AllocatedGroup& part = parts[it->second];
    if (part.layer != layer) part.layer = -1;
    part.modules.push_back(i);
  }
  for (AllocatedGroup& part : parts) part.name = name_of(part, plan);
  return parts;
}

const Engine* find_engine(const std::string& id) {
  std::vector<std::string> known{"any"};
  for (const Engine& engine : engines()) {
    if (engine.id == id) return &engine;
    known.push_back(engine.id);
  }
  if (id == "any") return nullptr;
  throw UsageError(fmt::format("--target \"{}\"{}", id, did_you_mean(id, known)));
}

}  // namespace aqhost
