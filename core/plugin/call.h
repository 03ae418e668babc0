#pragma once

#include <aq/abi.h>

#include <exception>
#include <string>

#include "base/error.h"
#include "base/utf8.h"

namespace aqhost {

/// A call into a plugin's function that reports through *err: whatever happens becomes a status.
/// A plugin that lets an exception out has broken the ABI; where it still reaches us it is an
/// error.
template <typename Function>
aq_status call_plugin(aq_error& error, Function function) {
  error = {};
  aq_status status = AQ_INTERNAL;
  const char* thrown = nullptr;
  try {
    status = function(&error);
  } catch (const std::exception&) {
    thrown = "it let a C++ exception out, which the ABI forbids";
  } catch (...) {
    thrown = "it let an exception out, which the ABI forbids";
  }
  if (thrown != nullptr) {
    const std::string text = thrown;
    text.copy(error.message, sizeof error.message - 1);
    status = AQ_INTERNAL;
  }
  error.message[sizeof error.message - 1] = '\0';
  return status;
}

/// A call that has no way to report an error; Error where it lets an exception out.
template <typename Function>
auto call_or_fail(const char* what, Function function) {
  try {
    return function();
  } catch (const std::exception& e) {
    fail("{} let an exception out: {}", what, e.what());
  } catch (...) {
    fail("{} let an exception out", what);
  }
}

/// A call that ends the life of something: what it throws is dropped.
template <typename Function>
void call_quietly(Function function) noexcept {
  try {
    function();
  } catch (...) {  // there is nothing left to refuse
  }
}

/// Whether a plugin's string can stand in messages and files: there, not empty, UTF-8, no control
/// characters.
inline bool is_name(const char* text) {
  if (text == nullptr || *text == '\0') return false;
  for (const char* c = text; *c != '\0'; c++)
    if (static_cast<unsigned char>(*c) < 0x20 || *c == 0x7f) return false;
  return is_utf8(text);
}

/// A plugin's text without control characters.
inline std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  return text;
}

/// What the plugin said, in one line, or the status where it said nothing.
inline std::string error_text(aq_status status, const aq_error& error) {
  if (error.message[0] == '\0') return "status " + std::to_string(status) + " without a message";
  return one_line(error.message);
}

}  // namespace aqhost
