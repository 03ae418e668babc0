#pragma once

#include <cstdint>

// What all files of the GPU module use.
namespace aqhost::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = 8;  // per thread block
constexpr unsigned kAll = 0xffffffffu;

inline const char* text_of(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline const char* last_error() { return text_of(cudaGetLastError()); }

/// Selects the GPU again, because this module has a CUDA runtime of its own, which does not know
/// which GPU the host has selected.
inline const char* use(int device) { return text_of(cudaSetDevice(device)); }

/// The number of thread blocks for `tasks`, of which each block does `each`.
inline unsigned blocks(int64_t tasks, int64_t each) {
  return static_cast<unsigned>((tasks + each - 1) / each);
}

}  // namespace aqhost::cuda
