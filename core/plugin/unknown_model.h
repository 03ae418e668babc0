#pragma once

#include <array>
#include <string>

#include "base/json.h"

namespace aqhost {

/// The keys of config.json that give the number of experts.
inline constexpr std::array kExpertKeys{"num_experts", "num_local_experts", "n_routed_experts",
                                        "moe_num_experts", "num_moe_experts"};

/// What can be told of a config.json that no adapter knows.
struct UnknownModel {
  std::string why;     // "no plugin knows model_type \"glm4_moe\""
  std::string kind;    // "generic_moe" or "standard", which is dense
  Json found;          // the keys that it was told by, as config.json has them
  std::string advice;  // what the user can do, a sentence without a full stop
};

/// Goes by the keys that models of all kinds use for their experts; those of a language model
/// inside a larger one (text_config) count.
UnknownModel describe_unknown(const Json& config);

}  // namespace aqhost
