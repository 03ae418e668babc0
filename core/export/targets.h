#pragma once

#include <set>
#include <string>
#include <vector>

namespace aqhost {

// How readers of config.json are told which modules are meant.

/// Names, or "re:" and a pattern, that match all of `mine` and none of `others`, as general as they
/// can be: numbers in names become any number.
std::set<std::string> targets_for(const std::vector<std::string>& mine,
                                  const std::vector<std::string>& others);

/// The same as patterns alone.
std::set<std::string> patterns_for(const std::vector<std::string>& mine,
                                   const std::vector<std::string>& others);

/// Python's re.match: from the start of `name`, not to its end. Error if the pattern is none.
bool matches_start(const std::string& pattern, const std::string& name);

}  // namespace aqhost
