#pragma once

#include <memory>
#include <string>

#include "plugin/format.h"

namespace aqhost {

/// int formats as the plugins make them: options as in a recipe.
std::unique_ptr<const Format> int_format(int bits, const Json& options);

/// The same numbers behind callbacks alone (AQ_ELEM_CUSTOM): the host cannot round them itself.
std::unique_ptr<const Format> int_format_by_callbacks(int bits, const Json& options);

/// E2M1 by code with a sign bit (so with a -0): "mx" has E8M0 scales, "nv" E4M3 and a global scale,
/// "f32" float32 scales that are searched for.
std::unique_ptr<const Format> fp4_format(const std::string& scales, int32_t group_size);

/// Two weights a code, four bits each, behind callbacks.
std::unique_ptr<const Format> pair_format();

}  // namespace aqhost
