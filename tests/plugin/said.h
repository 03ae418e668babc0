#pragma once

#include <string>

#include "base/error.h"

namespace aqhost {

/// The message of the Error that `body` throws, "" where it throws none.
template <typename Body>
std::string said(Body body) {
  try {
    body();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace aqhost
