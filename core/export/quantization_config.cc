#include "export/quantization_config.h"

#include <algorithm>
#include <map>
#include <set>

namespace aqhost {
namespace {

/// The release of compressed-tensors whose conventions are followed.
constexpr const char* kVersion = "0.20.0";

/// Everything in a config group except its targets; equal values belong to one group.
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
  std::map<std::string, std::vector<std::string>> groups;  // indexed by the text of group_of()
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

namespace {

constexpr const char* kKey = "quantization_config";

ConfigGroup parse_group(const std::string& name, const Field& group, const std::string& format) {
  ConfigGroup parsed;
  parsed.name = name;
  parsed.targets = Targets(group["targets"]);
  const Field weights = group["weights"], activations = group["input_activations"];
  if (!weights.json().is_object()) weights.mismatch("an object");
  if (!activations.is_null() && !activations.json().is_object())
    activations.mismatch("an object or null");
  if (!group["output_activations"].is_null()) group["output_activations"].unsupported();
  parsed.format = {{"format", group["format"].text_or(format)}, {"weights", weights.json()}};
  parsed.activations = activations.json();
  return parsed;
}

}  // namespace

std::vector<ConfigGroup> parse_quantization_config(const Json& config, const std::string& where) {
  const Field quantization(config, where, kKey);
  const Field groups = quantization["config_groups"];
  for (const char* key :
       {"sparsity_config", "transform_config"})  // these change how weights are computed
    if (const Field field = quantization[key]; !field.is_null() && !field.json().empty())
      field.unsupported();
  const std::string& format = quantization["format"].text();
  std::vector<ConfigGroup> result;
  for (const auto& [name, group] : groups.members())
    result.push_back(parse_group(name, group, format));
  return result;
}

const ConfigGroup* find_group(const std::vector<ConfigGroup>& groups, const std::string& module) {
  for (const ConfigGroup& group : groups)
    if (group.targets.has_name(module)) return &group;
  for (const ConfigGroup& group : groups)
    if (group.targets.has_pattern(module)) return &group;
  for (const ConfigGroup& group : groups)
    if (group.targets.has_linear()) return &group;
  return nullptr;
}

Ignored::Ignored(const Json& config, const std::string& where) {
  const Field list = Field(config, where, kKey)["ignore"];
  if (!list.is_null()) targets_ = Targets(list);
}

}  // namespace aqhost
