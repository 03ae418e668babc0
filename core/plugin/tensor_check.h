#pragma once

#include <set>
#include <string>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// Reads every tensor that the model needs, except those in `except`. Throws an Error that names
/// file and tensor if a value is not finite.
void check_finite(const Source& source, const Model& model, const std::set<std::string>& except);

}  // namespace aqhost
