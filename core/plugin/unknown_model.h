#pragma once

#include <array>
#include <string>

#include "base/json.h"

namespace aqhost {

/// The keys of config.json that give the number of experts.
inline constexpr std::array kExpertKeys{"num_experts", "num_local_experts", "n_routed_experts",
                                        "moe_num_experts", "num_moe_experts"};

/// What is known about a config.json that no adapter recognises.
struct UnknownModel {
  std::string why;     // "no plugin knows model_type \"glm4_moe\""
  std::string kind;    // "generic_moe", or "standard" for a dense model
  Json found;          // the keys by which the kind was recognised, as in config.json
  std::string advice;  // what the user can do, as a sentence without a full stop
};

/// Looks for the keys that all kinds of models use for their experts, also in the language model
/// inside a larger model (text_config).
UnknownModel describe_unknown(const Json& config);

}  // namespace aqhost
