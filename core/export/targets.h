#pragma once

#include <regex>
#include <set>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/field.h"

namespace aqhost {

// How config.json names the modules that are meant.

/// Names, or "re:" and a pattern, that match all of `mine` and none of `others`. They are as
/// general as possible: numbers in names become any number.
std::set<std::string> targets_for(const std::vector<std::string>& mine,
                                  const std::vector<std::string>& others);

/// The same, with patterns only.
std::set<std::string> patterns_for(const std::vector<std::string>& mine,
                                   const std::vector<std::string>& others);

/// A pattern that must match from the start of a name, but need not reach its end, like Python's
/// re.match. It is compiled once. Matching is thread-safe.
class StartPattern {
 public:
  /// Throws an Error that begins with `where` if this is not a valid pattern.
  StartPattern(const std::string& pattern, const std::string& where);
  bool matches(const std::string& name) const;

 private:
  std::regex regex_;
};

/// A list as compressed-tensors has it in "targets" and "ignore": its entries are names, "re:" and
/// a pattern, or the class "Linear".
class Targets {
 public:
  Targets() = default;
  /// Throws an Error that names the field if this is not an array of strings, or if a pattern is
  /// not valid.
  explicit Targets(const Field& list);

  bool has_name(const std::string& module) const { return names_.contains(module); }
  bool has_pattern(const std::string& module) const;
  /// Whether the list means all linear modules.
  bool has_linear() const { return names_.contains("Linear"); }

 private:
  std::unordered_set<std::string> names_;
  std::vector<StartPattern> patterns_;
};

}  // namespace aqhost
