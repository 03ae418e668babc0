#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "report/report.h"

namespace aqhost {

/// What calibration saw of the experts, for people: one line per layer, with one bar per expert
/// whose height is relative to the busiest expert of the layer, then the minimum, the maximum and
/// the spread of the token counts. '!' stands for an expert that is starved. Where there are more
/// experts than fit in `width` columns, one bar shows the minimum of several neighbours.
std::vector<std::string> coverage_rows(const std::vector<ExpertReport>& experts, std::size_t width);

/// A warning about experts that received too few tokens, which says how much more text would help;
/// empty if there are none.
std::string starved_warning(const RunReport& report);

}  // namespace aqhost
