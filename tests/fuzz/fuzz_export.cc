// A quantized checkpoint, an export or one that is published quantized: refused with an Error, or
// read from end to end. The input is config.json, a zero byte, the header of model.safetensors (its
// length is put before it), a zero byte, the data.

#include <cstring>

#include "base/error.h"
#include "bytes.h"
#include "check.h"
#include "export/decoded_checkpoint.h"
#include "temp_folder.h"

namespace {

using namespace aqhost;

constexpr int64_t kMaximumElements = 1 << 22;  // a stored tensor of size zero may stand for many

void read_module(const DecodedCheckpoint& checkpoint, const StoredModule& module) {
  try {
    check(module.rows > 0 && module.cols > 0);
    check(checkpoint.find_module(module.name) == &module);
    if (module.rows > kMaximumElements / module.cols) return;
    std::vector<float> values(static_cast<std::size_t>(module.rows * module.cols));
    checkpoint.read_f32(module.name + ".weight", 0, values);
    checkpoint.input_rounding(module.name);
  } catch (const Error&) {
  }
}

void read_tensor(const Source& checkpoint, const TensorInfo& info) {
  try {
    check(checkpoint.find(info.name) != nullptr);
    if (info.numel() > kMaximumElements) return;
    std::vector<float> values(static_cast<std::size_t>(info.numel()));
    checkpoint.read_f32(info.name, 0, values);
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  static const TempFolder folder;
  static const Registry registry({AQ_PLUGINS}, {.trust = true, .probe = false});
  check(!registry.format_ids().empty());
  Bytes input(data, size);
  put_file(folder / "config.json", input.until('\0'));
  const std::string_view header = input.until('\0');
  const uint64_t length = header.size();
  std::string tensors(sizeof length, '\0');
  std::memcpy(tensors.data(), &length, sizeof length);
  put_file(folder / "model.safetensors", tensors.append(header).append(input.rest()));
  try {
    const auto source = open_source(folder.path(), registry);
    if (!is_quantized(source->config())) return 0;
    if (const auto* checkpoint = dynamic_cast<const DecodedCheckpoint*>(source.get()))
      for (const StoredModule& module : checkpoint->modules()) read_module(*checkpoint, module);
    for (const TensorInfo& info : source->tensors()) read_tensor(*source, info);
    const StoredSize stored = source->stored_size();
    check(stored.weight_bytes <= static_cast<int64_t>(size));
    check(stored.weights >= 0);
  } catch (const Error&) {
  }
  return 0;
}
