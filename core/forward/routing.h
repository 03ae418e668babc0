#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace aqhost {

/// The choices of a router for N tokens.
struct Routing {
  at::Tensor logits;   // [N, n_experts] f32
  at::Tensor ids;      // [N, top_k] i32, -1: the slot is not used
  at::Tensor weights;  // [N, top_k] f32
};

/// The tokens that one expert sees, and the weight of its output for each.
struct ExpertTokens {
  at::Tensor rows;     // [n] i64, ascending
  at::Tensor weights;  // [n] f32
};

/// Groups a routing by expert. A token and its weight stay together. Returns n_experts entries on
/// the device of the routing; an expert without tokens has empty tensors.
std::vector<ExpertTokens> tokens_by_expert(const Routing& routing, int32_t n_experts);

}  // namespace aqhost
