#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

// What is asked of a tensor before it is read: headers tell all but whether its values are finite.

/// Whether the part of a stored tensor that `ref` names is a matrix or vector of `shape`: all of it
/// where ref.row_count is 0.
bool holds(const TensorInfo& info, const TensorRef& ref, std::span<const int64_t> shape);

/// Error, naming `source` and the tensor, unless it is there, of a float type, and holds `shape`.
void check_holds(const Source& source, const TensorRef& ref, std::span<const int64_t> shape);

/// Reads every tensor that the model needs, save those in `except`. Error, naming file and tensor,
/// if a value is not finite.
void check_finite(const Source& source, const Model& model, const std::set<std::string>& except);

}  // namespace aqhost
