#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "conformance/rules.h"
#include "plugin/registry.h"

namespace aqhost {

// Each function tests its rules and appends the verdicts.

/// Tests the file by itself: symbols, libraries, entry, descriptors. Returns whether it may be
/// loaded.
bool check_file(const std::filesystem::path& file, std::vector<Verdict>& verdicts);
void check_model(const Registry& registry, const std::string& id,
                 const std::optional<std::filesystem::path>& checkpoint,
                 std::vector<Verdict>& verdicts);
void check_format(const Registry& registry, const std::string& id, std::vector<Verdict>& verdicts);

/// Throws an Error unless `holds` is true.
template <typename... Args>
void expect(bool holds, fmt::format_string<Args...> format, Args&&... args) {
  if (!holds) fail(format, std::forward<Args>(args)...);
}

/// Makes a call that must fail with a message; returns the message.
template <typename Function>
std::string expect_refused(const char* what, Function function) {
  aq_error error{};
  const aq_status status = function(&error);
  expect(status != AQ_OK, "{} was taken as right", what);
  expect(error.message[0] != '\0', "{} was refused without a message", what);
  return error.message;
}

/// Runs body() on four threads at the same time. Throws what one of them threw as an Error.
void expect_on_many_threads(const std::function<void()>& body);

/// Checks that an aq_model or aq_quantizer returns NULL for an extension that does not exist.
template <typename Raw>
void expect_no_unknown_extension(const Raw* raw) {
  if (AQ_HAS(raw, get_extension))
    expect(raw->get_extension(raw, "aq.no-such-extension/1") == nullptr, "it gave one");
}

/// Calls `describe` (aq_status(Struct*)) like a host whose struct ends earlier or later than this
/// one. `describe` must never write past the end of the host's struct, must leave the rest of a
/// longer struct 0, and must refuse rather than drop a field that is not 0.
template <typename Struct, typename Describe>
void check_growth(Describe describe) {
  constexpr std::size_t kTail = 16;
  constexpr unsigned char kCanary = 0xa5;
  alignas(Struct) unsigned char bytes[sizeof(Struct) + 2 * kTail];
  const auto call = [&](std::size_t size) {
    std::memset(bytes, 0, sizeof bytes);
    std::memset(bytes + size, kCanary, sizeof bytes - size);
    const auto size32 = static_cast<uint32_t>(size);
    std::memcpy(bytes, &size32, sizeof size32);
    const aq_status status = describe(reinterpret_cast<Struct*>(bytes));
    for (std::size_t i = size; i < sizeof bytes; i++)
      expect(bytes[i] == kCanary, "it wrote past the {} bytes that the host has", size);
    return status;
  };
  expect(call(sizeof(Struct)) == AQ_OK, "it failed");
  const std::vector<unsigned char> whole(bytes, bytes + sizeof(Struct));
  expect(call(sizeof(Struct) + kTail) == AQ_OK, "it failed in a host with a longer struct");
  for (std::size_t i = sizeof(Struct); i < sizeof(Struct) + kTail; i++)
    expect(bytes[i] == 0, "it wrote into a field that it does not know");
  const auto last =
      std::find_if(whole.rbegin(), whole.rend(), [](unsigned char b) { return b != 0; });
  // the bytes up to the last one that is not 0
  const auto used = static_cast<std::size_t>(whole.rend() - last);
  if (used > 2 * sizeof(uint32_t))
    expect(call(used - 1) != AQ_OK,
           "it dropped a field that is not 0, for which an older host has no room");
}

}  // namespace aqhost
