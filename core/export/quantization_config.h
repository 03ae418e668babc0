#pragma once

#include <string>
#include <vector>

#include "base/field.h"
#include "base/json.h"
#include "export/targets.h"

namespace aqhost {

/// One linear module as readers of config.json are told of it.
struct ExportedModule {
  std::string name;
  const Json* format = nullptr;       // Format::config(); null: it stays dense
  const Json* activations = nullptr;  // of the format its input is rounded to; null: none
};

/// The name that the map from hidden states to the vocabulary has in every model class of
/// transformers, vLLM and SGLang, whether the checkpoint stores a tensor for it or not.
inline constexpr const char* kLmHead = "lm_head";

/// "quantization_config" of the config.json of `directory`; null if there is none: a key that is
/// missing, null or an empty object says that the checkpoint is not quantized.
Field quantization_config_of(const Json& config, const std::string& directory);
bool is_quantized(const Json& config);

/// The "quantization_config" of config.json after compressed-tensors 0.20: one config group per
/// distinct format, targets as general as they can be without matching a module of another group,
/// "mixed-precision" at the top where the groups' formats differ, dense modules under "ignore".
/// Readers take every Linear of the model class that a group's target "Linear" covers for a
/// quantized one unless "ignore" has it, so `modules` must list all of them, stored or not.
Json quantization_config(const std::vector<ExportedModule>& modules);

/// A config group, read back.
struct ConfigGroup {
  std::string name;  // "group_0"
  Targets targets;
  Json format;       // {"format": ..., "weights": {...}}
  Json activations;  // as "weights"; null: none
};

/// The groups of a "quantization_config". Error (naming `where`) if it is not understood.
std::vector<ConfigGroup> parse_quantization_config(const Json& config, const std::string& where);

/// The group that covers `module` (an exact name before a pattern before "Linear"), or nullptr.
const ConfigGroup* find_group(const std::vector<ConfigGroup>& groups, const std::string& module);

/// The modules that "ignore" of a "quantization_config" leaves dense.
class Ignored {
 public:
  Ignored(const Json& config, const std::string& where);
  bool contains(const std::string& module) const {
    return targets_.has_name(module) || targets_.has_pattern(module) || targets_.has_linear();
  }

 private:
  Targets targets_;
};

}  // namespace aqhost
