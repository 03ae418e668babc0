#include "calibrate/windows.h"

#include <algorithm>
#include <numeric>

namespace aqhost {

std::vector<int64_t> sample(int64_t available, int64_t count, std::mt19937_64& random) {
  std::vector<int64_t> order(static_cast<std::size_t>(available));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (count >= available) return order;
  // Fisher-Yates written out, because std::shuffle differs between standard libraries
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); i++)
    std::swap(order[i], order[i + random() % (order.size() - i)]);
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<int64_t> sample(int64_t available, int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  return sample(available, count, random);
}

std::vector<std::size_t> share_windows(const std::vector<int64_t>& available,
                                       const std::vector<double>& weights, int64_t count) {
  std::vector<std::size_t> turns;
  std::vector<int64_t> taken(available.size(), 0);
  while (static_cast<int64_t>(turns.size()) < count) {
    std::size_t next = available.size();
    double largest = 0;
    for (std::size_t i = 0; i < available.size(); i++) {
      const double claim = weights[i] / (2 * static_cast<double>(taken[i]) + 1);
      if (taken[i] == available[i] || claim <= largest) continue;
      largest = claim;
      next = i;
    }
    if (next == available.size()) break;
    taken[next]++;
    turns.push_back(next);
  }
  return turns;
}

at::Tensor random_windows(int64_t count, int64_t length, int64_t vocab_size, uint64_t seed) {
  at::Tensor windows = at::empty({count, length}, at::kLong);
  std::mt19937_64 random(seed);
  std::generate_n(windows.data_ptr<int64_t>(), windows.numel(), [&] {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(vocab_size));
  });
  return windows;
}

}  // namespace aqhost
