#include "tokenizer/field.h"

#include "base/error.h"

namespace aqhost {

std::string Field::where() const { return path_.empty() ? file_ : file_ + ": " + path_; }

void Field::mismatch(std::string_view expected) const {
  fail("{}: expected {}, found {}", where(), expected,
       json_->is_null() ? "nothing" : json_->type_name());
}

void Field::unsupported() const {
  fail("{} {} is not supported", where(),
       json_->dump(-1, ' ', false, Json::error_handler_t::replace));
}

Field Field::operator[](std::string_view key) const {
  static const Json kNull;
  if (!json_->is_object()) mismatch("an object");
  const auto found = json_->find(key);
  return Field(found == json_->end() ? kNull : *found, file_,
               path_.empty() ? std::string(key) : path_ + "." + std::string(key));
}

const std::string& Field::text() const {
  if (!json_->is_string()) mismatch("a string");
  return json_->get_ref<const std::string&>();
}

int64_t Field::integer() const {
  if (!json_->is_number_integer()) mismatch("an integer");
  return json_->get<int64_t>();
}

bool Field::flag() const {
  if (!json_->is_boolean()) mismatch("true or false");
  return json_->get<bool>();
}

std::vector<Field> Field::items() const {
  if (!json_->is_array()) mismatch("an array");
  std::vector<Field> items;
  items.reserve(json_->size());
  for (size_t i = 0; i < json_->size(); i++) {
    items.push_back(Field((*json_)[i], file_, fmt::format("{}[{}]", path_, i)));
  }
  return items;
}

}  // namespace aqhost
