#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "checkpoint/safetensors.h"

namespace aqhost {

/// The array in the bytes of a .npy file, which the result borrows; it has no name. Error, with
/// `where`, for what is no such file, a header that is cut off, elements that no DType stands for
/// or that are big-endian, an array in Fortran order, and a length other than the shape's.
/// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3.
StoredTensor parse_npy(std::span<const std::byte> bytes, const std::string& where);

}  // namespace aqhost
