#pragma once

#include <ATen/ATen.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace aqhost {

/// `count` of the numbers below `available`, chosen by `random`, rising; all if there are no more.
/// From the same state, the sample of a smaller count lies within that of a larger.
std::vector<int64_t> sample(int64_t available, int64_t count, std::mt19937_64& random);
std::vector<int64_t> sample(int64_t available, int64_t count, uint64_t seed);

/// Which file each of `count` windows comes from, if file i has available[i] of them and is to give
/// the part weights[i] (> 0). Parts are kept in every stretch of the result (Webster's method);
/// what a file does not have, the others give. Shorter where all of them have less.
std::vector<std::size_t> share_windows(const std::vector<int64_t>& available,
                                       const std::vector<double>& weights, int64_t count);

/// [count, length] i64, every id of the vocabulary as likely as any other. From the same seed, the
/// windows of a smaller count are the first of a larger.
at::Tensor random_windows(int64_t count, int64_t length, int64_t vocab_size, uint64_t seed);

}  // namespace aqhost
