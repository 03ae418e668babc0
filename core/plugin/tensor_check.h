#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

// Checks of a tensor before it is read. The header of the file answers everything except whether
// the values are finite.

/// Whether the part of a stored tensor that `ref` names is a matrix or vector of `shape`. If
/// ref.row_count is 0, that part must reach to the tensor's end.
bool holds(const TensorInfo& info, const TensorRef& ref, std::span<const int64_t> shape);

/// Throws an Error that names `source` and the tensor, unless it exists, has a float type, and
/// holds `shape`.
void check_holds(const Source& source, const TensorRef& ref, std::span<const int64_t> shape);

/// Reads every tensor that the model needs, except those in `except`. Throws an Error that names
/// file and tensor if a value is not finite.
void check_finite(const Source& source, const Model& model, const std::set<std::string>& except);

}  // namespace aqhost
