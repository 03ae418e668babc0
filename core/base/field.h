#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// A value of a JSON file together with the way to it ("pre_tokenizer.pretokenizers[1]"), so that
/// every message names file and field, and no value is taken for a type that it has not. Borrows
/// the JSON.
class Field {
 public:
  /// `path` is where `json` lies in the file, if it is not the whole.
  Field(const Json& json, std::string file, std::string path = "")
      : json_(&json), file_(std::move(file)), path_(std::move(path)) {}

  const Json& json() const { return *json_; }
  /// "FILE: a.b[2]"
  std::string where() const;

  /// A member of this object; a missing one is null. Error where this is no object.
  Field operator[](std::string_view key) const;
  bool is_null() const { return json_->is_null(); }

  // The value; Error where it has another type (or, for text_or and so on, is not null either).
  const std::string& text() const;
  /// A whole number from `least` to `most`.
  int64_t integer(int64_t least = std::numeric_limits<int64_t>::min(),
                  int64_t most = std::numeric_limits<int64_t>::max()) const;
  double number() const;
  bool flag() const;
  bool flag_or(bool missing) const { return is_null() ? missing : flag(); }
  std::string text_or(std::string missing) const { return is_null() ? std::move(missing) : text(); }
  /// The elements of an array.
  std::vector<Field> items() const;
  /// The members of an object, by name.
  std::vector<std::pair<std::string, Field>> members() const;

  /// Error: `FILE: pre_tokenizer.type "X" is not supported`.
  [[noreturn]] void unsupported() const;
  /// Error: `FILE: pre_tokenizer: expected an object, found nothing`.
  [[noreturn]] void mismatch(std::string_view expected) const;

 private:
  Field member(const Json& json, std::string_view key) const;

  const Json* json_;
  std::string file_, path_;
};

}  // namespace aqhost
