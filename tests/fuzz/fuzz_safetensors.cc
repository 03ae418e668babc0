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
    const SafetensorsHeader header = parse_safetensors(bytes, "fuzz");
    std::size_t sum = 0;
    for (const StoredTensor& t : header.tensors) {
      check(t.numel() >= 0);
      check(t.bytes.size() == static_cast<std::size_t>(t.numel() * dtype_size(t.dtype)));
      check(t.bytes.data() >= bytes.data() &&
            t.bytes.data() + t.bytes.size() <= bytes.data() + bytes.size());
      sum += t.bytes.size();
    }
    check(sum <= size);
    for (const StoredTensor& t : header.tensors) {
      std::vector<float> values(static_cast<std::size_t>(t.numel()));
      convert_f32(t, 0, values, "fuzz");
    }
  } catch (const Error&) {
  }
  return 0;
}
