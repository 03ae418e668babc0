#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "checkpoint/safetensors.h"

namespace aqhost {

/// Where the array of a .npy file of `file_size` bytes lies in it; it has no name. `start`: the
/// file's first bytes, with the header (kNpyHeader are enough). Error, with `where`, for what is no
/// such file, a header that is cut off, elements that no DType stands for or that are big-endian,
/// an array in Fortran order, and a length other than the shape's.
/// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3.
StoredTensor parse_npy(std::span<const std::byte> start, int64_t file_size,
                       const std::string& where);
inline constexpr std::size_t kNpyHeader = 4096 + 12;

/// The array of a .npy file.
LoadedTensor read_npy(const std::filesystem::path& path);

}  // namespace aqhost
