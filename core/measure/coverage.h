#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// From the "experts" of a report, for people: a row a layer with a mark for each expert, as high
/// as its tokens are many beside the layer's most, then the least, the most and the spread. '!'
/// stands for an expert that is starved. Where experts are too many for `width` columns, a mark
/// shows the least of several neighbours.
std::vector<std::string> coverage_rows(const Json& experts, std::size_t width);

/// What to tell of the starved experts of a whole report, with how much more text would help;
/// empty if there are none.
std::string starved_warning(const Json& report);

}  // namespace aqhost
