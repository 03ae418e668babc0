#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace aqhost {

/// The message of the Error that `body` throws; "" if it throws none.
inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A GGUF file in memory, read by a reader of its own.
class ReadGguf {
 public:
  explicit ReadGguf(std::string content) : content_(std::move(content)) {
    REQUIRE(content_.substr(0, 4) == "GGUF");
    at_ = 4;
    REQUIRE(take<uint32_t>() == 3);
    const auto tensors = take<uint64_t>(), values = take<uint64_t>();
    for (uint64_t i = 0; i < values; i++) {
      const std::string key = take_text();
      const auto type = take<uint32_t>();
      keys.push_back(key);
      value[key] = take_value(type);
    }
    for (uint64_t i = 0; i < tensors; i++) {
      Entry entry;
      const std::string name = take_text();
      const auto dims = take<uint32_t>();
      for (uint32_t d = 0; d < dims; d++) entry.dims.push_back(take<int64_t>());
      entry.type = take<uint32_t>();
      entry.offset = take<uint64_t>();
      tensor[name] = entry;
    }
    data = (at_ + 31) / 32 * 32;
  }

  struct Entry {
    std::vector<int64_t> dims;
    uint32_t type = 0;
    uint64_t offset = 0;
  };

  std::string bytes(const Entry& entry, std::size_t size) const {
    return content_.substr(data + entry.offset, size);
  }
  std::size_t size() const { return content_.size(); }

  std::vector<std::string> keys;
  std::map<std::string, Json> value;
  std::map<std::string, Entry> tensor;
  std::size_t data = 0;

 private:
  template <typename T>
  T take() {
    T result;
    REQUIRE(at_ + sizeof result <= content_.size());
    std::memcpy(&result, content_.data() + at_, sizeof result);
    at_ += sizeof result;
    return result;
  }
  std::string take_text() {
    const auto size = take<uint64_t>();
    std::string text = content_.substr(at_, size);
    at_ += size;
    return text;
  }
  Json take_value(uint32_t type) {
    if (type == 2) return take<uint16_t>();
    if (type == 4) return take<uint32_t>();
    if (type == 5) return take<int32_t>();
    if (type == 6) return take<float>();
    if (type == 7) return take<uint8_t>() != 0;
    if (type == 8) return take_text();
    REQUIRE(type == 9);
    const auto element = take<uint32_t>();
    const auto count = take<uint64_t>();
    Json list = Json::array();
    for (uint64_t i = 0; i < count; i++) list.push_back(take_value(element));
    return list;
  }

  std::string content_;
  std::size_t at_ = 0;
};

}  // namespace aqhost
