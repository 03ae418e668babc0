#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace aqhost {

/// The candidate with the smallest edit distance to `name`, or "" if none is near. Near means a
/// distance of at most a third of the longer name's length, or at most 2.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// ", did you mean \"x\"?" or, if no candidate is near, ", known: a, b, c".
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace aqhost
