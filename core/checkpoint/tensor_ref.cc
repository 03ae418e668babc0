#include "checkpoint/tensor_ref.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace aqhost {
namespace {

bool is_float(DType type) {
  return type == DType::kF16 || type == DType::kBF16 || type == DType::kF32;
}

}  // namespace

bool holds(const TensorInfo& info, const TensorRef& ref, std::span<const int64_t> shape) {
  std::vector<int64_t> stored = info.shape;
  if (ref.index >= 0) {
    if (stored.empty() || ref.index >= stored[0]) return false;
    stored.erase(stored.begin());
  }
  if (ref.transposed) std::reverse(stored.begin(), stored.end());
  if (stored.size() != shape.size()) return false;
  if (shape.empty()) return true;
  if (!std::equal(shape.begin() + 1, shape.end(), stored.begin() + 1)) return false;
  const int64_t rows = shape[0];
  // avoids products, which could overflow, until they are known to be small
  if (rows < 1 || ref.row_begin >= stored[0] ||
      rows - 1 > (stored[0] - 1 - ref.row_begin) / ref.row_step)
    return false;
  return ref.row_count == 0 ? ref.row_begin + (rows - 1) * ref.row_step + 1 == stored[0]
                            : ref.row_count == rows;
}

void check_holds(const Source& source, const TensorRef& ref, std::span<const int64_t> shape) {
  const TensorInfo* info = source.find(ref.name);
  if (info == nullptr) fail("{}: there is no tensor {}", source.directory(), ref.name);
  if (!holds(*info, ref, shape))
    fail("{}: tensor {} is [{}], expected to hold [{}]", source.directory(), ref.name,
         fmt::join(info->shape, ", "), fmt::join(shape, ", "));
  if (!is_float(info->dtype))
    fail("{}: tensor {} is {}, expected F16, BF16 or F32", source.directory(), ref.name,
         dtype_name(info->dtype));
}

}  // namespace aqhost
