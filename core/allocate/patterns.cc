// patterns_for(): finds short patterns for sets of module names.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <regex>
#include <set>

#include "allocate/candidates.h"
#include "base/pattern.h"

namespace aqhost {
namespace {

using NameParts = std::vector<std::string>;

NameParts parts_of(const std::string& name) {
  NameParts parts;
  std::size_t begin = 0;
  for (std::size_t end = name.find('.'); end != std::string::npos; end = name.find('.', begin)) {
    parts.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  parts.push_back(name.substr(begin));
  return parts;
}

bool is_number(const std::string& part) {
  return !part.empty() &&
         std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// Names that differ only in numbers and, unless they are to be spelled out, in their last part.
struct AlikeNames {
  NameParts parts;                         // of the first name
  std::vector<std::set<std::string>> own;  // the values of each part
  std::vector<std::string> names;
};

std::vector<AlikeNames> group(const std::vector<std::string>& names, bool spelled_out) {
  std::map<std::string, std::size_t> known;
  std::vector<AlikeNames> groups;
  for (const std::string& name : names) {
    const NameParts parts = parts_of(name);
    std::string key;
    for (std::size_t i = 0; i < parts.size(); i++) {
      const bool joined = is_number(parts[i]) || (!spelled_out && i + 1 == parts.size());
      key += joined ? "*." : parts[i] + ".";
    }
    const auto [it, added] = known.try_emplace(key, groups.size());
    if (added) groups.push_back({parts, std::vector<std::set<std::string>>(parts.size()), {}});
    AlikeNames& alike = groups[it->second];
    for (std::size_t i = 0; i < parts.size(); i++) alike.own[i].insert(parts[i]);
    alike.names.push_back(name);
  }
  return groups;
}

/// Numbers by value, words by the alphabet.
std::vector<std::string> sorted(const std::set<std::string>& values) {
  std::vector<std::string> list(values.begin(), values.end());
  std::stable_sort(list.begin(), list.end(), [](const std::string& a, const std::string& b) {
    return is_number(a) && is_number(b) && a.size() < b.size();
  });
  return list;
}

std::string escaped(const std::string& part) {
  std::string text;
  for (const char c : part) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) text += '\\';
    text += c;
  }
  return text;
}

std::string one_of(const std::set<std::string>& values) {
  std::vector<std::string> list;
  for (const std::string& value : sorted(values)) list.push_back(escaped(value));
  return list.size() == 1 ? list.front() : fmt::format("({})", fmt::join(list, "|"));
}

std::string glob_of(const AlikeNames& alike) {
  NameParts parts;
  for (std::size_t i = 0; i < alike.parts.size(); i++)
    parts.push_back(alike.own[i].size() == 1 ? alike.parts[i] : "*");
  return fmt::format("{}", fmt::join(parts, "."));
}

/// A regular expression. Numbers are listed up to the part `listed`; after it, any number matches.
std::string regex_of(const AlikeNames& alike, std::size_t listed) {
  NameParts parts;
  for (std::size_t i = 0; i < alike.parts.size(); i++)
    parts.push_back(is_number(alike.parts[i]) && i > listed && alike.own[i].size() > 1
                        ? "\\d+"
                        : one_of(alike.own[i]));
  return fmt::format("re:{}", fmt::join(parts, "\\."));
}

/// Whether, of all names, the pattern matches exactly those.
bool is_exact(const std::string& pattern, const std::vector<std::string>& names,
              const std::vector<std::string>& all) {
  const bool is_regex = pattern.starts_with("re:");
  if (is_regex && pattern.size() > 900) return false;  // see compile_regex()
  const std::regex regex = is_regex ? compile_regex(pattern.substr(3), pattern) : std::regex();
  const auto matches = [&](const std::string& name) {
    return is_regex ? std::regex_match(name, regex) : glob_match(pattern, name);
  };
  return std::all_of(names.begin(), names.end(), matches) &&
         std::count_if(all.begin(), all.end(), matches) ==
             static_cast<std::ptrdiff_t>(names.size());
}

}  // namespace

std::vector<std::string> patterns_for(const std::vector<std::string>& names,
                                      const std::vector<std::string>& all, bool spelled_out) {
  std::vector<std::string> patterns;
  for (const AlikeNames& alike : group(names, spelled_out)) {
    const auto number = std::find_if(alike.parts.begin(), alike.parts.end(), is_number);
    const auto first = static_cast<std::size_t>(number - alike.parts.begin());
    const std::vector<std::string> tries{glob_of(alike), regex_of(alike, first),
                                         regex_of(alike, alike.parts.size())};
    const auto found = std::find_if(tries.begin(), tries.end(), [&](const std::string& pattern) {
      return is_exact(pattern, alike.names, all);
    });
    if (found != tries.end())
      patterns.push_back(*found);
    else
      patterns.insert(patterns.end(), alike.names.begin(), alike.names.end());
  }
  return patterns;
}

}  // namespace aqhost
