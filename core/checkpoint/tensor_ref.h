#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "checkpoint/source.h"

namespace aqhost {

/// Where a matrix [out, in] or a vector lies in a checkpoint; an aq_tensor_ref that owns its name.
/// It is read in this order: entry `index` of dimension 0 is taken (-1: the tensor does not stack
/// experts), it is transposed, then the `row_count` rows row_begin, row_begin + row_step, ... are
/// taken (0: all rows from row_begin on).
struct TensorRef {
  std::string name;
  int64_t index = -1, row_begin = 0, row_step = 1, row_count = 0;
  bool transposed = false;
};

// Checks of a tensor before it is read. The header of the file answers everything except whether
// the values are finite.

/// Whether the part of a stored tensor that `ref` names is a matrix or vector of `shape`. If
/// ref.row_count is 0, that part must reach to the tensor's end.
bool holds(const TensorInfo& info, const TensorRef& ref, std::span<const int64_t> shape);

/// Throws an Error that names `source` and the tensor, unless it exists, has a float type, and
/// holds `shape`.
void check_holds(const Source& source, const TensorRef& ref, std::span<const int64_t> shape);

}  // namespace aqhost
