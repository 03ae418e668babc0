#pragma once

#include <cstdint>
#include <string>

namespace aqhost {

/// "1 window", "3 windows".
inline std::string counted(int64_t number, const std::string& unit) {
  return std::to_string(number) + " " + unit + (number == 1 ? "" : "s");
}

}  // namespace aqhost
