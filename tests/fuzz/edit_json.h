#pragma once

#include <array>
#include <cstdint>
#include <iterator>
#include <string>

#include "base/json.h"
#include "bytes.h"

namespace aqhost {

inline constexpr std::array<int64_t, 8> kNumbers{
    -1, 1, 255, 256, 2047, (1LL << 31) - 1, 1LL << 32, INT64_MIN};

/// Some value inside `json`: one step down for each number, until one is a multiple of 4.
inline Json& inside(Json& json, Bytes& input) {
  Json* at = &json;
  while (at->is_structured() && !at->empty() && input.byte() % 4 != 0)
    at = &*std::next(at->begin(), static_cast<std::ptrdiff_t>(input.below(at->size())));
  return *at;
}

inline Json value_of(uint8_t kind, Json& json, Bytes& input) {
  switch (kind % 8) {
    case 0:
      return nullptr;
    case 1:
      return input.byte() % 2 == 0;
    case 2:
      return kNumbers[input.byte() % kNumbers.size()];
    case 3:
      return input.byte();
    case 4:
      return std::string(input.take(input.byte() % 32));
    case 5:
      return Json::array();
    case 6:
      return Json::object();
    default:
      return inside(json, input);  // a copy
  }
}

/// One change of structure: a value replaced, added, taken out or copied.
inline void edit_json(Json& json, Bytes& input) {
  const uint8_t what = input.byte();
  const Json value = value_of(static_cast<uint8_t>(what / 4), json, input);
  Json& at = inside(json, input);
  if (what % 4 == 0 && at.is_array()) {
    at.push_back(value);
  } else if (what % 4 == 1 && at.is_object()) {
    at[std::string(input.take(input.byte() % 32))] = value;
  } else if (what % 4 == 2 && at.is_structured() && !at.empty()) {
    at.erase(std::next(at.begin(), static_cast<std::ptrdiff_t>(input.below(at.size()))));
  } else {
    at = value;
  }
}

}  // namespace aqhost
