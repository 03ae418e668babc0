#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace aqhost {

/// What a router decided for N tokens.
struct Routing {
  at::Tensor logits;   // [N, n_experts] f32
  at::Tensor ids;      // [N, top_k] i32, -1: slot not used
  at::Tensor weights;  // [N, top_k] f32
};

/// The tokens one expert sees, and the weight its output has for each.
struct ExpertTokens {
  at::Tensor rows;     // [n] i64, ascending
  at::Tensor weights;  // [n] f32
};

/// Routing by expert: (token, slot) pairs stay together, so that a weight never meets another
/// token's row. n_experts entries on the routing's device, empty tensors where nobody came.
std::vector<ExpertTokens> tokens_by_expert(const Routing& routing, int32_t n_experts);

}  // namespace aqhost
