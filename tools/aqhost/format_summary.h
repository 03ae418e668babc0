#pragma once

#include <string>

#include "base/json.h"
#include "plugin/format.h"

namespace aqhost {

/// What a format is, asked through the ABI: {bits, grid, group_sizes, group_size, scale,
/// zero_point, global_scale, max_error, rms_error}; the errors of 64 groups (or rows of 4096) of
/// N(0,1), fitted and rounded by the plugin's own functions.
Json summarize(const Format& format);

/// The same in one line: "4 bits, 16 values from -6 to 6, groups of 32, scale E8M0; N(0,1): ...".
std::string summary_text(const Json& summary);

}  // namespace aqhost
