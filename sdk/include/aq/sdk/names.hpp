// aq/sdk/names.hpp - the names of checkpoint tensors as data: one row for each kind of tensor,
// which translates in both directions.
#pragma once

#include <aq/model.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace aq {

/// One kind of tensor. `pattern` has {L} in place of the layer's number and {E} in place of the
/// expert's, such as "model.layers.{L}.mlp.experts.{E}.up_proj.weight".
struct NameRow {
  int32_t role;
  int32_t expert;  // AQ_EXPERT_NONE, AQ_EXPERT_SHARED, or kEachExpert
  std::string pattern;
  int32_t part = AQ_PART_WEIGHT;
};
inline constexpr int32_t kEachExpert = 0;

/// Translates keys to names and back. The two directions are exact inverses: numbers are decimal,
/// without leading zeros.
class NameTable {
 public:
  explicit NameTable(std::vector<NameRow> rows) : rows_(std::move(rows)) {}

  std::optional<std::string> name(const aq_tensor_key& key) const {
    for (const NameRow& row : rows_)
      if (row.role == key.role && row.part == key.part && same_expert(row, key) &&
          (has(row, "{L}") ? key.layer >= 0 : key.layer == -1))
        return fill(row.pattern, key);
    return std::nullopt;
  }

  std::optional<aq_tensor_key> key(std::string_view name) const {
    for (const NameRow& row : rows_) {
      aq_tensor_key key{-1, row.role, row.expert, row.part};
      if (match(row.pattern, name, key)) return key;
    }
    return std::nullopt;
  }

 private:
  static bool has(const NameRow& row, const char* hole) {
    return row.pattern.find(hole) != std::string::npos;
  }
  static bool same_expert(const NameRow& row, const aq_tensor_key& key) {
    return has(row, "{E}") ? key.expert >= 0 : key.expert == row.expert;
  }

  static std::string fill(const std::string& pattern, const aq_tensor_key& key) {
    std::string name;
    for (std::size_t i = 0; i < pattern.size(); i++) {
      const bool hole = pattern[i] == '{' && i + 2 < pattern.size() && pattern[i + 2] == '}';
      if (!hole) {
        name += pattern[i];
        continue;
      }
      name += std::to_string(pattern[i + 1] == 'L' ? key.layer : key.expert);
      i += 2;
    }
    return name;
  }

  static bool match(std::string_view pattern, std::string_view name, aq_tensor_key& key) {
    while (!pattern.empty()) {
      if (pattern.size() >= 3 && pattern[0] == '{' && pattern[2] == '}') {
        int32_t& number = pattern[1] == 'L' ? key.layer : key.expert;
        if (!take_number(name, number)) return false;
        pattern.remove_prefix(3);
      } else {
        if (name.empty() || name[0] != pattern[0]) return false;
        name.remove_prefix(1);
        pattern.remove_prefix(1);
      }
    }
    return name.empty();
  }

  static bool take_number(std::string_view& text, int32_t& number) {
    std::size_t digits = 0;
    int64_t value = 0;
    while (digits < text.size() && digits < 10 && text[digits] >= '0' && text[digits] <= '9')
      value = 10 * value + (text[digits++] - '0');
    if (digits == 0 || (digits > 1 && text[0] == '0') || value > INT32_MAX) return false;
    number = static_cast<int32_t>(value);
    text.remove_prefix(digits);
    return true;
  }

  std::vector<NameRow> rows_;
};

}  // namespace aq
