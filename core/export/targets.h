#pragma once

#include <regex>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/field.h"

namespace aqhost {

// How readers of config.json are told which modules are meant.

/// Names, or "re:" and a pattern, that match all of `mine` and none of `others`, as general as they
/// can be: numbers in names become any number.
std::set<std::string> targets_for(const std::vector<std::string>& mine,
                                  const std::vector<std::string>& others);

/// The same as patterns alone.
std::set<std::string> patterns_for(const std::vector<std::string>& mine,
                                   const std::vector<std::string>& others);

/// A pattern that begins to match at the start of a name and need not reach its end, as Python's
/// re.match. Compiled once; matching may be done from any thread.
class StartPattern {
 public:
  /// Error, beginning with `where`, if it is no pattern.
  StartPattern(const std::string& pattern, const std::string& where);
  bool matches(const std::string& name) const;

 private:
  std::regex regex_;
};

/// A list of names, "re:" and a pattern, or the class "Linear", as compressed-tensors has it in
/// "targets" and "ignore".
class Targets {
 public:
  Targets() = default;
  /// Error (naming the field) if it is no array of strings, or a pattern is none.
  explicit Targets(const Field& list);

  bool has_name(const std::string& module) const { return names_.contains(module); }
  bool has_pattern(const std::string& module) const;
  /// Whether all linear modules are meant.
  bool has_linear() const { return names_.contains("Linear"); }

 private:
  std::unordered_set<std::string> names_;
  std::vector<StartPattern> patterns_;
};

}  // namespace aqhost
