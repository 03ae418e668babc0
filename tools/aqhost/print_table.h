#pragma once

#include <string>
#include <vector>

namespace aqhost {

/// Prints lines of cells to stdout, in columns that are as wide as their longest cell. Every line
/// has at most as many cells as the first.
void print_table(const std::vector<std::vector<std::string>>& lines);

}  // namespace aqhost
