#pragma once

#include <optional>
#include <string>

#include "base/json.h"
#include "plugin/model.h"

namespace aqhost {

/// A rotation as GGUF describes it.
struct GgufRope {
  std::string scaling = "none";  // or "linear", "yarn"
  float theta = 0, factor = 1;
  // of YaRN
  int64_t original_positions = 0;
  float attention_factor = 1;  // beside YaRN's own 0.1 ln(factor) + 1
  /// Not 0: cos and sin have the factor attention_factor alone, and latent attention has the scale
  /// (attention_factor (1 + 0.1 log_multiplier ln(factor)))^2 / sqrt(head_dim).
  float log_multiplier = 0;
  /// The largest change of a frequency, relative to it, because llama.cpp rounds the bounds between
  /// which YaRN interpolates, and the model has `truncate: false`.
  double rounded = 0;
};

/// Finds the description by which llama.cpp computes the frequencies and the factor of `attention`,
/// to within what float32 can tell; nullopt if there is none. YaRN's settings come from
/// config.json, and are checked against the frequencies.
std::optional<GgufRope> gguf_rope(const Json& config, const AttentionDesc& attention);

}  // namespace aqhost
