#include "export/quantization_config.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "base/pattern.h"
#include "export/targets.h"

namespace aqhost {
namespace {

/// The compressed-tensors release whose conventions are followed.
constexpr const char* kVersion = "0.20.0";

std::string string_at(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string())
    fail("{}: quantization_config.{} is missing or no string", where, key);
  return it->get<std::string>();
}

/// What distinguishes a config group: all but its targets.
Json group_of(const ExportedModule& module) {
  Json group{{"weights", module.format->at("weights")},
             {"input_activations", nullptr},
             {"output_activations", nullptr},
             {"format", module.format->at("format")}};
  if (module.activations != nullptr) group["input_activations"] = module.activations->at("weights");
  for (const Json* format : {module.format, module.activations})
    if (format != nullptr && format->contains("quant_method"))
      group["quant_method"] = format->at("quant_method");
  return group;
}

}  // namespace

Json quantization_config(const std::vector<ExportedModule>& modules) {
  std::map<std::string, std::vector<std::string>> groups;  // by group_of(), as text
  std::vector<std::string> dense, quantized;
  for (const ExportedModule& m : modules) {
    if (m.format != nullptr) groups[group_of(m).dump()].push_back(m.name);
    (m.format != nullptr ? quantized : dense).push_back(m.name);
  }
  std::vector<std::pair<std::string, std::vector<std::string>>> ordered(groups.begin(),
                                                                        groups.end());
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const auto& a, const auto& b) { return a.second.size() > b.second.size(); });

  Json config{{"quant_method", "compressed-tensors"},
              {"quantization_status", "compressed"},
              {"version", kVersion},
              {"kv_cache_scheme", nullptr},
              {"sparsity_config", Json::object()},
              {"transform_config", Json::object()},
              {"ignore", dense}};
  std::set<std::string> formats;
  for (std::size_t i = 0; i < ordered.size(); i++) {
    Json group = Json::parse(ordered[i].first);
    const auto& mine = ordered[i].second;
    Json targets = Json::array({"Linear"});
    if (ordered.size() > 1) {
      std::vector<std::string> others = dense;
      for (std::size_t j = 0; j < ordered.size(); j++)
        if (j != i) others.insert(others.end(), ordered[j].second.begin(), ordered[j].second.end());
      targets = targets_for(mine, others);
    }
    formats.insert(group.at("format").get<std::string>());
    if (group.contains("quant_method")) config["quant_method"] = group.at("quant_method");
    group.erase("quant_method");
    group["targets"] = std::move(targets);
    config["config_groups"]["group_" + std::to_string(i)] = std::move(group);
  }
  config["format"] = formats.size() == 1 ? *formats.begin() : "mixed-precision";
  return config;
}

std::vector<ConfigGroup> parse_quantization_config(const Json& config, const std::string& where) {
  const std::string method = string_at(config, "quant_method", where);
  const auto groups = config.find("config_groups");
  // a format's own quant_method is no obstacle: its config_groups are what is read
  if (method != "compressed-tensors" && groups == config.end())
    fail("{}: quantization_config.quant_method is \"{}\", expected \"compressed-tensors\"", where,
         method);
  const std::string format = string_at(config, "format", where);
  const Json ignore = config.value("ignore", Json::array());
  if (!ignore.is_array() ||
      !std::all_of(ignore.begin(), ignore.end(), [](const Json& name) { return name.is_string(); }))
    fail("{}: quantization_config.ignore is no array of names", where);
  if (groups == config.end() || !groups->is_object())
    fail("{}: quantization_config.config_groups is missing or no object", where);
  std::vector<ConfigGroup> result;
  for (const auto& [name, group] : groups->items()) {
    ConfigGroup parsed;
    parsed.name = name;
    const std::string at = "quantization_config.config_groups." + name;
    if (!group.is_object() || !group.contains("targets") || !group["targets"].is_array() ||
        !group.contains("weights") || !group["weights"].is_object())
      fail("{}: {} has not the targets (array) and weights (object) that were expected", where, at);
    for (const Json& target : group["targets"]) {
      if (!target.is_string()) fail("{}: {}.targets holds something that is no string", where, at);
      parsed.targets.push_back(target.get<std::string>());
    }
    const auto own = group.find("format");
    const bool has_own = own != group.end() && own->is_string();
    parsed.format = {{"format", has_own ? own->get<std::string>() : format},
                     {"weights", group["weights"]}};
    const auto activations = group.find("input_activations");
    if (activations != group.end() && !activations->is_null()) {
      if (!activations->is_object()) fail("{}: {}.input_activations is no object", where, at);
      parsed.activations = *activations;
    }
    result.push_back(std::move(parsed));
  }
  return result;
}

const ConfigGroup* find_group(const std::vector<ConfigGroup>& groups, const std::string& module) {
  const ConfigGroup* pattern = nullptr;
  const ConfigGroup* any = nullptr;
  for (const ConfigGroup& group : groups)
    for (const std::string& target : group.targets) {
      if (target == module) return &group;
      if (target == "Linear") any = any == nullptr ? &group : any;
      if (pattern != nullptr || !target.starts_with("re:")) continue;
      if (matches_start(target.substr(3), module)) pattern = &group;
    }
  return pattern != nullptr ? pattern : any;
}

}  // namespace aqhost
