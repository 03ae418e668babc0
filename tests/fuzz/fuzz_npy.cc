// A .npy file: refused with an Error, or an array of the bytes that its shape takes.

#include <cstdint>

#include "base/error.h"
#include "check.h"
#include "checkpoint/npy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace aqhost;
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    const StoredTensor array = parse_npy(bytes, static_cast<int64_t>(size), "fuzz");
    check(array.numel() >= 0);
    check(array.size == array.nbytes());
    check(array.offset + array.size == static_cast<int64_t>(size));
  } catch (const Error&) {
  }
  return 0;
}
