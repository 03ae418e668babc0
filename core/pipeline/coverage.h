#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// How unevenly experts are used: the standard deviation of their tokens by the mean; 0 where all
/// have the same.
double spread(const std::vector<int64_t>& tokens);

/// From the "experts" of a report, for people: a row a layer with a mark for each expert, as high
/// as its tokens are many beside the layer's most, then the least, the most and the spread. '!'
/// stands for an expert that is starved. Where experts are too many for `width` columns, a mark
/// shows the least of several neighbours.
std::vector<std::string> coverage_rows(const Json& experts, std::size_t width);

/// What to tell of the starved experts of a whole report, with how much more text would help;
/// empty if there are none.
std::string starved_warning(const Json& report);

}  // namespace aqhost
