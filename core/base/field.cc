#include "base/field.h"

#include "base/error.h"

namespace aqhost {
namespace {

/// A value as messages show it: a short one in full, a long one only by its type.
std::string shown(const Json& json) {
  constexpr std::size_t kMaxCharacters = 60;
  if (json.is_null()) return "nothing";
  if (json.is_structured()) return json.type_name();
  const std::string text = to_text(json);
  return text.size() <= kMaxCharacters ? text : json.type_name();
}

}  // namespace

std::string Field::where() const { return path_.empty() ? file_ : file_ + ": " + path_; }

void Field::mismatch(std::string_view expected) const {
  fail("{}: expected {}, found {}", where(), expected, shown(*json_));
}

void Field::unsupported() const { fail("{} {} is not supported", where(), to_text(*json_)); }

Field Field::member(const Json& json, std::string_view key) const {
  return Field(json, file_, path_.empty() ? std::string(key) : path_ + "." + std::string(key));
}

Field Field::operator[](std::string_view key) const {
  static const Json kNull;
  if (!json_->is_object()) mismatch("an object");
  const auto found = json_->find(key);
  return member(found == json_->end() ? kNull : *found, key);
}

const std::string& Field::text() const {
  if (!json_->is_string()) mismatch("a string");
  return json_->get_ref<const std::string&>();
}

int64_t Field::integer(int64_t minimum, int64_t maximum) const {
  constexpr auto kMaxInteger = std::numeric_limits<int64_t>::max();
  if (!json_->is_number_integer()) mismatch("an integer");
  const bool too_large =
      json_->is_number_unsigned() && json_->get<uint64_t>() > static_cast<uint64_t>(kMaxInteger);
  if (too_large || json_->get<int64_t>() < minimum || json_->get<int64_t>() > maximum)
    mismatch(fmt::format("an integer from {} to {}", minimum, maximum));
  return json_->get<int64_t>();
}

double Field::number() const {
  if (!json_->is_number()) mismatch("a number");
  return json_->get<double>();
}

bool Field::flag() const {
  if (!json_->is_boolean()) mismatch("true or false");
  return json_->get<bool>();
}

std::vector<Field> Field::items() const {
  if (!json_->is_array()) mismatch("an array");
  std::vector<Field> items;
  items.reserve(json_->size());
  for (size_t i = 0; i < json_->size(); i++)
    items.push_back(Field((*json_)[i], file_, fmt::format("{}[{}]", path_, i)));
  return items;
}

std::vector<std::pair<std::string, Field>> Field::members() const {
  if (!json_->is_object()) mismatch("an object");
  std::vector<std::pair<std::string, Field>> members;
  members.reserve(json_->size());
  for (const auto& [key, value] : json_->items()) members.emplace_back(key, member(value, key));
  return members;
}

}  // namespace aqhost
