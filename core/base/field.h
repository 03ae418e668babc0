#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// A value in a JSON file together with its path ("pre_tokenizer.pretokenizers[1]"), so that every
/// message names the file and the field, and every access checks the type. Borrows the JSON.
class Field {
 public:
  /// `path` says where `json` lies in the file, if it is not the whole content.
  Field(const Json& json, std::string file, std::string path = "")
      : json_(&json), file_(std::move(file)), path_(std::move(path)) {}

  const Json& json() const { return *json_; }
  /// "FILE: a.b[2]"
  std::string where() const;

  /// A member of this object; a missing member is null. Throws an Error if this is not an object.
  Field operator[](std::string_view key) const;
  bool is_null() const { return json_->is_null(); }

  // These return the value, and throw an Error if it has another type. text_or() and flag_or() also
  // accept null.
  const std::string& text() const;
  /// An integer from `minimum` to `maximum`.
  int64_t integer(int64_t minimum = std::numeric_limits<int64_t>::min(),
                  int64_t maximum = std::numeric_limits<int64_t>::max()) const;
  double number() const;
  bool flag() const;
  bool flag_or(bool missing) const { return is_null() ? missing : flag(); }
  std::string text_or(std::string missing) const {
    if (is_null()) return missing;
    return text();
  }
  /// The elements of an array.
  std::vector<Field> items() const;
  /// The members of an object, by name.
  std::vector<std::pair<std::string, Field>> members() const;

  /// Throws the Error `FILE: pre_tokenizer.type "X" is not supported`.
  [[noreturn]] void unsupported() const;
  /// Throws the Error `FILE: pre_tokenizer: expected an object, found nothing`.
  [[noreturn]] void mismatch(std::string_view expected) const;

 private:
  Field member(const Json& json, std::string_view key) const;

  const Json* json_;
  std::string file_, path_;
};

}  // namespace aqhost
