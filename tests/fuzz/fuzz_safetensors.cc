// The header of a safetensors file: refused with an Error, or as the format demands.

#include <cstdint>

#include "base/error.h"
#include "check.h"
#include "checkpoint/convert.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  using namespace aqhost;
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    const SafetensorsHeader header = parse_safetensors(bytes, static_cast<int64_t>(size), "fuzz");
    std::size_t sum = 0;
    for (const StoredTensor& t : header.tensors) {
      check(t.numel() >= 0);
      check(t.size == t.nbytes());
      check(t.offset >= 0 && t.offset + t.size <= static_cast<int64_t>(size));
      sum += static_cast<std::size_t>(t.size);
    }
    check(sum <= size);
    for (const StoredTensor& t : header.tensors) {
      std::vector<float> values(static_cast<std::size_t>(t.numel()));
      convert_f32(
          t, bytes.subspan(static_cast<std::size_t>(t.offset), static_cast<std::size_t>(t.size)), 0,
          values, "fuzz");
    }
  } catch (const Error&) {
  }
  return 0;
}
