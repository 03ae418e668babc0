// aq/sdk/plugin.hpp - the C++ side of a plugin: errors, the guard around every call, and the one
// export.
#pragma once

#include <aq/abi.h>

#include <cstdio>
#include <new>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

namespace aq {

/// The exception of plugins. The guard passes its code and message to the host.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, aq_status code = AQ_INVALID_ARGUMENT)
      : std::runtime_error(message), code_(code) {}
  aq_status code() const { return code_; }

 private:
  aq_status code_;
};

inline aq_status report(aq_error* err, aq_status code, const char* message) noexcept {
  err->code = code;
  std::snprintf(err->message, sizeof err->message, "%s", message);
  return code;
}

/// Runs `body` and turns whatever it throws into *err and a status, so that no exception leaves the
/// plugin. Every ABI function that can fail is such a call.
template <typename Body>
aq_status guard(aq_error* err, Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return AQ_OK;
  } catch (const Error& e) {
    return report(err, e.code(), e.what());
  } catch (const std::bad_alloc&) {
    return report(err, AQ_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return report(err, AQ_INTERNAL, e.what());
  } catch (...) {
    return report(err, AQ_INTERNAL, "an exception of unknown kind");
  }
}

/// Fills the host's struct. Throws an Error if the host is too old to have room for a field that is
/// set.
template <typename Struct>
void copy_out(Struct* out, Struct value) {
  value.struct_size = sizeof value;
  if (aq_copy_out(out, &value, sizeof value) != AQ_OK)
    throw Error("the host is older than this plugin needs: a field it would fill is not there",
                AQ_UNSUPPORTED);
}

/// The descriptor of a model or format that a plugin offers.
struct Descriptor {
  const char* id;
  const char* name;
  const char* version;
  const char* vendor;
  const char* description;

  constexpr explicit operator aq_descriptor() const {
    return {sizeof(aq_descriptor), 0, id, name, version, vendor, description};
  }
};

/// An entry for a plugin that offers the factories that `get_factory` returns, and has neither
/// init() nor deinit().
constexpr aq_entry make_entry(const void*(AQ_CALL* get_factory)(const char*)) {
  return {sizeof(aq_entry), AQ_ABI_MAJOR, AQ_ABI_MINOR, nullptr, nullptr, get_factory};
}

}  // namespace aq

/// Defines the only symbol that a plugin exports; used by AQ_EXPORT_MODEL and AQ_EXPORT_QUANTIZER.
/// The argument is a get_factory() of aq_entry; it may contain commas.
#define AQ_EXPORT_ENTRY(...)                       \
  extern "C" {                                     \
  AQ_EXPORT extern const aq_entry aq_plugin_entry; \
  }                                                \
  const aq_entry aq_plugin_entry = aq::make_entry(__VA_ARGS__)
