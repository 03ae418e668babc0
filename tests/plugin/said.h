#pragma once

#include <string>

#include "base/error.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

namespace aqhost {

/// While it lives, leaks are allowed: an object whose table of functions is broken cannot be
/// destroyed through it.
#ifdef __SANITIZE_ADDRESS__
using LeaksAllowed = __lsan::ScopedDisabler;
#else
struct LeaksAllowed {};
#endif

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
