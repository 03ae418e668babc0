#pragma once

#include <string>
#include <vector>

#include "base/field.h"
#include "base/json.h"
#include "export/targets.h"

namespace aqhost {

/// One linear module as config.json describes it.
struct ExportedModule {
  std::string name;
  const Json* format = nullptr;       // Format::config(); null: it stays dense
  const Json* activations = nullptr;  // config of its input's format; null: not rounded
};

/// The name of the map from hidden states to the vocabulary in every model class of transformers,
/// vLLM and SGLang, even if the checkpoint stores no tensor for it.
inline constexpr const char* kLmHead = "lm_head";

/// Makes the "quantization_config" of config.json as compressed-tensors 0.20 does. There is one
/// config group per distinct format. Its targets are as general as possible without matching a
/// module of another group. The format at the top is "mixed-precision" if the formats of the groups
/// differ, and dense modules are under "ignore". If a group has the target "Linear", readers take
/// every Linear of the model class for quantized, unless it is under "ignore". Therefore `modules`
/// must list all of them, whether they are stored or not.
Json quantization_config(const std::vector<ExportedModule>& modules);

/// A config group that was read back.
struct ConfigGroup {
  std::string name;  // "group_0"
  Targets targets;
  Json format;       // {"format": ..., "weights": {...}}
  Json activations;  // like "weights"; null: none
};

/// The groups of a "quantization_config". Throws an Error that names `where` if it is not
/// understood.
std::vector<ConfigGroup> parse_quantization_config(const Json& config, const std::string& where);

/// The group that covers `module`, or nullptr. An exact name has precedence over a pattern, and a
/// pattern over "Linear".
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
