#include "run/pieces.h"

#include <algorithm>

namespace aqhost {

std::vector<std::vector<Piece>> steps_of(const std::vector<at::Tensor>& tensors,
                                         const std::vector<int>& owners, int size,
                                         int64_t most_bytes) {
  std::vector<std::vector<Piece>> steps;
  // where the next piece of an owner goes: its step, and the bytes that the step has of the owner
  std::vector<std::size_t> step(static_cast<std::size_t>(size), 0);
  std::vector<int64_t> used(static_cast<std::size_t>(size), 0);
  for (std::size_t i = 0; i < tensors.size(); i++) {
    const auto owner = static_cast<std::size_t>(owners[i]);
    const auto width = static_cast<int64_t>(tensors[i].element_size());
    for (int64_t begin = 0, count = 0; begin < tensors[i].numel(); begin += count) {
      // Pieces begin at multiples of 8 bytes, so that every type can be stored there.
      used[owner] = (used[owner] + 7) / 8 * 8;
      if (most_bytes - used[owner] < width) {
        step[owner]++;
        used[owner] = 0;
      }
      count = std::min(tensors[i].numel() - begin, (most_bytes - used[owner]) / width);
      used[owner] += count * width;
      if (steps.size() <= step[owner]) steps.resize(step[owner] + 1);
      steps[step[owner]].push_back({i, begin, count, owners[i]});
    }
  }
  return steps;
}

}  // namespace aqhost
