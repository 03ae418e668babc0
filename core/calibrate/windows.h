#pragma once

#include <ATen/ATen.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace aqhost {

/// `count` of the numbers below `available`, chosen by `random`, in rising order; all of them if
/// there are no more. With the same state of `random`, a smaller sample is a subset of a larger
/// one.
std::vector<int64_t> sample(int64_t available, int64_t count, std::mt19937_64& random);
std::vector<int64_t> sample(int64_t available, int64_t count, uint64_t seed);

/// Chooses for each of `count` windows the file from which it comes. File i has available[i]
/// windows and should give a share weights[i] (> 0). The shares hold in every part of the result
/// (Webster's method); if a file has too few windows, the others give more. The result is shorter
/// if all files together have fewer windows.
std::vector<std::size_t> share_windows(const std::vector<int64_t>& available,
                                       const std::vector<double>& weights, int64_t count);

/// [count, length] i64 in which every id of the vocabulary is equally likely. With the same seed, a
/// smaller count gives the first windows of a larger one.
at::Tensor random_windows(int64_t count, int64_t length, int64_t vocab_size, uint64_t seed);

}  // namespace aqhost
