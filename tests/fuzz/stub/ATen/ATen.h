// What core/calibrate/corpus.cc uses of ATen, for fuzz builds, which have no LibTorch: a list of
// ids.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace at {

inline constexpr int kLong = 0;

struct Tensor {
  std::vector<int64_t> ids;
  int64_t windows = 0;
  Tensor view(std::initializer_list<int64_t> shape) const {
    const int64_t length = shape.begin()[1];  // of [-1, length]
    return {ids, length > 0 ? static_cast<int64_t>(ids.size()) / length : 0};
  }
  int64_t size(int /*dimension 0*/) const { return windows; }
};

inline Tensor tensor(const std::vector<int64_t>& ids, int /*type*/) { return {ids, 0}; }

}  // namespace at
