#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace aqhost {

/// The candidate with the least edit distance to `name`, or "" where none is near (a third of the
/// longer name's length, at least 2).
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// ", did you mean \"x\"?" or, with nothing near, ", known: a, b, c".
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace aqhost
