#pragma once

#include <aq/abi.h>

#include <exception>
#include <string>

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

/// What the plugin said, or the status where it said nothing.
inline std::string error_text(aq_status status, const aq_error& error) {
  if (error.message[0] != '\0') return error.message;
  return "status " + std::to_string(status) + " without a message";
}

}  // namespace aqhost
