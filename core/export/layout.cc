#include "export/layout.h"

#include <string>

#include "export/gptq.h"

namespace aqhost {

bool has_input_global(const Format* format) {
  return format != nullptr && format->desc().global_scale;
}

std::vector<TensorInfo> stored_tensors(Layout layout, const Format& format,
                                       const Format* activations, int64_t rows, int64_t cols) {
  if (layout == Layout::kGptq) return gptq_tensors(format, rows, cols);
  std::vector<TensorInfo> tensors = format.packed(rows, cols);
  if (has_input_global(activations))
    tensors.push_back({std::string(kInputGlobalScale), DType::kF32, {1}});
  return tensors;
}

int64_t stored_bytes(const std::vector<TensorInfo>& tensors) {
  int64_t bytes = 0;
  for (const TensorInfo& info : tensors)
    if (info.name != "weight_shape" && info.name != "g_idx")
      bytes += info.numel() * dtype_size(info.dtype);
  return bytes;
}

}  // namespace aqhost
