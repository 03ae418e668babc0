#pragma once

#include <string>

#include "base/json.h"
#include "plugin/format.h"

namespace aqhost {

/// Describes a format: {bits, grid, group_sizes, group_size, scale, zero_point, global_scale,
/// max_error, rms_error}. The errors are those of 64 groups (or rows of 4096) of numbers from
/// N(0,1), which the plugin's own functions fit and round.
Json summarize(const Format& format);

/// The same in one line: "4 bits, 15 values from -6 to 6, groups of 32 (32), scale E8M0; errors
/// ...".
std::string summary_text(const Json& summary);

}  // namespace aqhost
