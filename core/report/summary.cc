#include "report/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>

namespace aqhost {
namespace {

bool is_decimal_digit(char c) { return c >= '0' && c <= '9'; }

/// The order in which the parts of a layer work, as far as their names tell: attention, what every
/// token sees, routed experts, and what is outside the layers; in each of these, by the last word.
std::pair<std::size_t, std::size_t> place_of(const std::string& part) {
  constexpr std::array kWords{"q_proj", "q_a_proj",  "q_b_proj", "kv_a_proj_with_mqa",
                              "k_proj", "kv_b_proj", "v_proj",   "o_proj",
                              "w1",     "gate_proj", "w3",       "up_proj",
                              "w2",     "down_proj"};
  const std::string word = part.substr(part.rfind('.') + 1);
  const auto at = std::find(kWords.begin(), kWords.end(), word) - kWords.begin();
  const auto has = [&](const char* text) { return part.find(text) != part.npos; };
  const std::size_t block = has("attn") || has("attention") ? 0 : has("*") ? 2 : has(".") ? 1 : 3;
  return {block, static_cast<std::size_t>(at)};
}

}  // namespace

std::string name_without_numbers(const std::string& module) {
  std::string result;
  for (std::size_t i = 0; i < module.size();) {
    std::size_t end = i;
    while (end < module.size() && is_decimal_digit(module[end])) end++;
    const bool component =
        end > i && (i == 0 || module[i - 1] == '.') && (end == module.size() || module[end] == '.');
    if (component) {
      result += '*';
      i = end;
    } else {
      result += module[i++];
    }
  }
  return result;
}

std::string part_of(const std::string& module) {
  const std::string name = name_without_numbers(module);
  const std::size_t layer = name.find(".*.");
  return layer == name.npos ? name : name.substr(layer + 3);
}

std::string format_of(const ModuleReport& module) {
  const std::string groups = module.group_size > 0    ? fmt::format("g{}", module.group_size)
                             : module.group_size == 0 ? "matrix"
                                                      : "row";
  return module.format + " " + groups;
}

void ModuleSum::add(const ModuleReport& module) {
  const int64_t n = module.out_features * module.in_features;
  modules++;
  weights += n;
  bits += module.bits_per_weight * static_cast<double>(n);
  formats[format_of(module)] += n;
  if (!module.solve) return;
  loss += module.solve->loss;
  rtn_loss += module.solve->rtn_loss;
}

std::string ModuleSum::main_format() const {
  const auto most =
      std::max_element(formats.begin(), formats.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == formats.end() ? "" : most->first;
}

ReportSummary summarize(const RunReport& report) {
  ReportSummary s;
  std::set<std::pair<int32_t, int32_t>> starved;
  for (const ExpertReport& e : report.units.experts) {
    s.layers = std::max(s.layers, e.layer + 1);
    s.experts = std::max(s.experts, e.expert + 1);
    if (e.starved) starved.insert({e.layer, e.expert});
  }
  for (const auto& [name, m] : report.units.modules) {
    s.layers = std::max(s.layers, m.layer + 1);
    s.experts = std::max(s.experts, m.expert + 1);
  }
  for (const Refinement& r : report.units.refined) s.layers = std::max(s.layers, r.layer + 1);
  s.by_layer.resize(static_cast<std::size_t>(s.layers));
  std::map<std::string, ModuleSum> parts;
  for (const auto& [name, m] : report.units.modules) {
    const std::string part = part_of(name);
    s.all.add(m);
    s.formats[format_of(m)].add(m);
    parts[part].add(m);
    if (m.layer < 0) continue;
    s.by_layer[static_cast<std::size_t>(m.layer)].add(m);
    s.by_part_and_layer[{part, m.layer}].add(m);
    if (m.expert < 0) continue;
    s.by_expert[{m.layer, m.expert}].add(m);
    (starved.contains({m.layer, m.expert}) ? s.starved : s.other_experts).add(m);
  }
  s.parts.assign(parts.begin(), parts.end());
  std::stable_sort(s.parts.begin(), s.parts.end(), [](const auto& a, const auto& b) {
    return place_of(a.first) < place_of(b.first);
  });
  return s;
}

std::vector<std::pair<std::string, const ModuleReport*>> worst_modules(const UnitReport& report,
                                                                       std::size_t count) {
  std::vector<std::pair<std::string, const ModuleReport*>> worst;
  for (const auto& [name, m] : report.modules)
    if (m.solve) worst.emplace_back(name, &m);
  std::stable_sort(worst.begin(), worst.end(), [](const auto& a, const auto& b) {
    return a.second->solve->loss > b.second->solve->loss;
  });
  worst.resize(std::min(count, worst.size()));
  return worst;
}

}  // namespace aqhost
