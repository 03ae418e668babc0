#pragma once

#include <string>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// One linear module as readers of config.json are told of it.
struct ExportedModule {
  std::string name;
  const Json* format = nullptr;       // Format::config(); null: it stays dense
  const Json* activations = nullptr;  // of the format its input is rounded to; null: none
};

/// The "quantization_config" of config.json after compressed-tensors 0.20: one config group per
/// distinct format, targets as general as they can be without matching a module of another group,
/// "mixed-precision" at the top where the groups' formats differ, dense modules under "ignore".
Json quantization_config(const std::vector<ExportedModule>& modules);

/// A config group, read back.
struct ConfigGroup {
  std::string name;                  // "group_0"
  std::vector<std::string> targets;  // exact names, "re:..." or "Linear"
  Json format;                       // {"format": ..., "weights": {...}}
  Json activations;                  // as "weights"; null: none
};

/// The groups of a "quantization_config". Error (naming `where`) if it is not understood.
std::vector<ConfigGroup> parse_quantization_config(const Json& config, const std::string& where);

/// The group that covers `module` (an exact name before a pattern before "Linear"), or nullptr.
const ConfigGroup* find_group(const std::vector<ConfigGroup>& groups, const std::string& module);

}  // namespace aqhost
