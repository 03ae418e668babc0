#pragma once

#include <cstdint>
#include <string>

namespace aqhost {

/// "1 window", "3 windows".
inline std::string counted(int64_t number, const std::string& unit) {
  return std::to_string(number) + " " + unit + (number == 1 ? "" : "s");
}

/// "12,345,678".
std::string with_commas(int64_t n);
/// "6.20 MB", in powers of 1000.
std::string format_bytes(int64_t bytes);

}  // namespace aqhost
