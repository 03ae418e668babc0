#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace aqhost {

/// `count` elements of tensors[tensor], from `begin` on, which belong to the rank `owner`.
struct Piece {
  std::size_t tensor;
  int64_t begin, count;
  int owner;
};

/// Cuts tensors, of which tensors[i] belongs to the rank owners[i], into steps: each has at most
/// `most_bytes` of every owner, so that in a step all owners are busy and none needs more memory
/// than that. The tensors of an owner come in their order. The result depends on the arguments'
/// sizes alone.
std::vector<std::vector<Piece>> steps_of(const std::vector<at::Tensor>& tensors,
                                         const std::vector<int>& owners, int size,
                                         int64_t most_bytes);

}  // namespace aqhost
