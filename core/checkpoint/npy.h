#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "checkpoint/safetensors.h"

namespace aqhost {

/// Finds the array in a .npy file of `file_size` bytes; it has no name. `start` is the beginning of
/// the file with the header (kNpyHeader bytes are enough). Throws an Error that begins with `where`
/// if this is not a .npy file, if the header is truncated, if the elements are big-endian or have
/// no DType, if the array is in Fortran order, or if the file's size does not match the shape.
/// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3.
StoredTensor parse_npy(std::span<const std::byte> start, int64_t file_size,
                       const std::string& where);
inline constexpr std::size_t kNpyHeader = 4096 + 12;

/// Reads the array of a .npy file.
LoadedTensor read_npy(const std::filesystem::path& path);

}  // namespace aqhost
