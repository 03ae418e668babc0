#pragma once

#include <memory>
#include <string>

#include "plugin/format.h"

namespace aqhost {

/// An integer format as the plugins make it. `options` are those of a recipe.
std::unique_ptr<const Format> int_format(int bits, const Json& options);

/// The same numbers, but described as AQ_ELEM_CUSTOM, so that the host must ask the callbacks.
std::unique_ptr<const Format> int_format_by_callbacks(int bits, const Json& options);

/// E2M1, whose codes have a sign bit, so that there is a -0. `scales` is "mx" for E8M0 scales, "nv"
/// for E4M3 scales with a global scale, or "f32" for float32 scales, which are searched for.
std::unique_ptr<const Format> fp4_format(const std::string& scales, int32_t group_size);

/// Integers of 2 or 4 bits whose groups have minima, or of 3 bits whose scales may be negative: two
/// levels of scales, as in K-quants, with groups of 16 in super-groups of 64.
std::unique_ptr<const Format> two_level_format(int bits);

/// A format of callbacks whose codes stand for two weights, with four bits for each.
std::unique_ptr<const Format> pair_format();

}  // namespace aqhost
