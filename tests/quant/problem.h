#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cstdint>

namespace aqhost {

/// Matrices [count, rows, cols] with a few large rows, and the Hessians of correlated inputs whose
/// columns differ in size.
struct Problem {
  at::Tensor weights, hessians;

  Problem(int64_t count, int64_t rows, int64_t cols, uint64_t seed, int64_t tokens = 0) {
    auto random = at::detail::createCPUGenerator(seed);
    weights = at::randn({count, rows, cols}, random).mul_(at::rand({count, rows, 1}, random));
    const at::Tensor mix = at::randn({cols, cols}, random).mul_(0.3).add_(at::eye(cols));
    const at::Tensor x = at::randn({count, tokens > 0 ? tokens : 4 * cols, cols}, random)
                             .matmul(mix)
                             .mul_(at::rand({cols}, random).add_(0.2));
    hessians = x.transpose(1, 2).matmul(x);
  }
};

}  // namespace aqhost
