#include "allocate/candidates.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/file.h"
#include "config/recipe.h"
#include "config/yaml.h"

namespace aqhost {
namespace {

constexpr std::array kDenseIds{"bf16", "fp16", "fp32"};
constexpr std::array kRemovedKeys{"wq",      "skip",       "symmetric",
                                  "element", "scale_rule", "scale_dtype"};
constexpr std::array kCandidateKeys{"group_size", "symmetric", "element", "scale_rule",
                                    "scale_dtype"};

bool is_dense_id(const std::string& id) {
  return std::find(kDenseIds.begin(), kDenseIds.end(), id) != kDenseIds.end();
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t end = text.find(separator); end != std::string::npos;
       end = text.find(separator, begin)) {
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  parts.push_back(text.substr(begin));
  return parts;
}

Candidate parse_candidate(const std::string& text) {
  const std::vector<std::string> parts = split(text, ':');
  if (parts.front().empty())
    throw UsageError("--candidates: a candidate is empty; give formats such as int2,int3,int4");
  Candidate candidate{text, {{"wq", parts.front()}}};
  for (std::size_t i = 1; i < parts.size(); i++) {
    const std::size_t equals = parts[i].find('=');
    const std::string key = parts[i].substr(0, equals);
    const bool known =
        std::find(kCandidateKeys.begin(), kCandidateKeys.end(), key) != kCandidateKeys.end();
    if (equals == std::string::npos || !known)
      throw UsageError(
          fmt::format("--candidates: \"{}\" in \"{}\" is not KEY=VALUE with one of the keys {}",
                      parts[i], text, fmt::join(kCandidateKeys, ", ")));
    candidate.keys[key] = parse_yaml(parts[i].substr(equals + 1), text);
  }
  if (candidate.dense() && candidate.keys.size() > 1)
    throw UsageError(fmt::format("--candidates: {}: {} has no options", text, parts.front()));
  return candidate;
}

/// Removes from a row what it says about formats and about which modules get one.
void strip(Json& row) {
  for (const char* key : kRemovedKeys) row.erase(key);
}

/// A value in YAML's flow style.
std::string yaml_text(const Json& value) {
  if (value.is_object()) {
    std::vector<std::string> members;
    for (const auto& [key, member] : value.items())
      members.push_back(key + ": " + yaml_text(member));
    return fmt::format("{{{}}}", fmt::join(members, ", "));
  }
  if (!value.is_string()) return to_text(value);
  const std::string text = value.get<std::string>();
  const bool word = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return c == '_' || (c >= 'a' && c <= 'z');
  });
  if (word) return text;
  // between single quotes, a backslash is a backslash
  if (text.find('\\') != std::string::npos && text.find('\'') == std::string::npos)
    return "'" + text + "'";
  return to_text(value);
}

/// "{pattern: "...", wq: int4}", with the pattern first, then `wq`.
std::string row_text(const std::string& pattern, Json keys) {
  std::vector<std::string> members;
  const auto add = [&](const std::string& key, const Json& value) {
    const bool format = key == "wq" && value.is_string();
    members.push_back(key + ": " + (format ? value.get<std::string>() : yaml_text(value)));
  };
  if (!pattern.empty()) add("pattern", Json(pattern));
  if (const auto wq = keys.find("wq"); wq != keys.end()) {
    add("wq", *wq);
    keys.erase("wq");
  }
  for (const auto& [key, value] : keys.items()) add(key, value);
  return fmt::format("{{{}}}", fmt::join(members, ", "));
}

}  // namespace

bool Candidate::dense() const { return is_dense_id(keys["wq"].get<std::string>()); }

std::vector<Candidate> parse_candidates(const std::string& list) {
  std::vector<Candidate> candidates;
  for (std::string text : split(list, ',')) {
    text.erase(0, std::min(text.find_first_not_of(' '), text.size()));
    text.erase(text.find_last_not_of(' ') + 1);
    candidates.push_back(parse_candidate(text));
    for (std::size_t i = 0; i + 1 < candidates.size(); i++)
      if (candidates[i].keys == candidates.back().keys)
        throw UsageError(fmt::format("--candidates: {} appears twice", text));
    // the parser of recipes says what is wrong with a value
    (void)Recipe::parse(fmt::format("default: {}", row_text("", candidates.back().keys)),
                        "--candidates " + text);
  }
  return candidates;
}

BaseRecipe::BaseRecipe(const std::string& file) : root_(parse_yaml(read_file(file), file)) {
  if (root_.contains("default")) strip(root_["default"]);
  if (!root_.contains("overrides")) return;
  Json rows = Json::array();
  for (Json row : root_["overrides"]) {
    strip(row);
    const std::size_t settings = row.size() - 1 - (row.contains("comment") ? 1 : 0);
    if (settings > 0) rows.push_back(std::move(row));
  }
  root_["overrides"] = std::move(rows);
}

std::string BaseRecipe::with(const std::vector<Row>& rows, const std::string& comment) const {
  std::string text;
  for (const std::string& line : split(comment, '\n'))
    if (!line.empty()) text += "# " + line + "\n";
  for (const auto& [key, value] : root_.items())
    if (key != "default" && key != "overrides") text += key + ": " + yaml_text(value) + "\n";
  if (root_.contains("default") && !root_["default"].empty())
    text += "default: " + row_text("", root_["default"]) + "\n";
  text += "overrides:\n";
  for (const Json& row : root_.value("overrides", Json::array())) {
    Json keys = row;
    keys.erase("pattern");
    text += "  - " + row_text(row["pattern"], std::move(keys)) + "\n";
  }
  for (const Row& row : rows) {
    text += "  - " + row_text(row.pattern, row.keys);
    text += row.comment.empty() ? "\n" : "  # " + row.comment + "\n";
  }
  return text;
}

}  // namespace aqhost
