#pragma once

#include <memory>
#include <string>
#include <vector>

#include "plugin/format.h"

namespace aqhost {

/// Our format plugins under every option that changes what they do, one instance each.
const std::vector<std::shared_ptr<const Format>>& variants();

/// "mxfp6 {"element":"e3m2"}"
std::string label(const Format& format);

/// Rows of n weights, each hard in its own way: zeros of both signs, ties, saturation, subnormal,
/// tiny and huge numbers, one sign only, an outlier, plain noise. Bits are the same everywhere.
std::vector<std::vector<float>> hard_rows(const FormatDesc& desc, int64_t n);

}  // namespace aqhost
