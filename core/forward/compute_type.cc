#include "forward/compute_type.h"

#include <algorithm>

#include "base/error.h"

namespace aqhost {

at::ScalarType compute_type(const std::string& name, const Source& source, at::Device device) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name != "auto")
    throw UsageError(fmt::format("--dtype \"{}\": expected auto, float32 or bfloat16", name));
  const std::vector<TensorInfo>& tensors = source.tensors();
  const bool stored = std::all_of(tensors.begin(), tensors.end(), [](const TensorInfo& t) {
    return t.shape.size() < 2 || t.dtype == DType::kBF16;
  });
  const bool multiplied = device.is_cuda() || __builtin_cpu_supports("avx512bf16");
  return stored && multiplied ? at::kBFloat16 : at::kFloat;
}

}  // namespace aqhost
