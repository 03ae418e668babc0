#pragma once

#include <aq/abi.h>

#include <exception>
#include <string>

#include "base/error.h"
#include "base/utf8.h"

namespace aqhost {

/// Calls a plugin's function that reports errors through *err. Whatever happens becomes a status. A
/// plugin that throws an exception has broken the ABI; if the exception reaches this code, it is an
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

/// Calls a plugin's function that has no way to report an error. Throws an Error if the function
/// throws an exception.
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

/// Calls a function that destroys something; what it throws is dropped.
template <typename Function>
void call_quietly(Function function) noexcept {
  try {
    function();
  } catch (...) {  // no object is left that could be refused
  }
}

/// Whether a plugin's string can be used in messages and files: it is there, not empty, UTF-8, and
/// has no control characters.
inline bool is_name(const char* text) {
  if (text == nullptr || *text == '\0') return false;
  for (const char* c = text; *c != '\0'; c++)
    if (static_cast<unsigned char>(*c) < 0x20 || *c == 0x7f) return false;
  return is_utf8(text);
}

/// A plugin's text with its control characters replaced by spaces.
inline std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  return text;
}

/// The plugin's error message on one line, or the status if there is no message.
inline std::string error_text(aq_status status, const aq_error& error) {
  if (error.message[0] == '\0') return "status " + std::to_string(status) + " without a message";
  return one_line(error.message);
}

}  // namespace aqhost
