#pragma once

#include <ATen/ATen.h>

#include "forward/routing.h"
#include "plugin/model.h"

namespace aqhost {

/// [tokens, n_experts] that test a router: among rows of plain normal numbers such with many ties,
/// with NaN, -inf, +inf, zeros of both signs, values that saturate, and nothing but NaN or -inf.
at::Tensor random_logits(int64_t tokens, int64_t n_experts);

/// A router written for the reader: one expert after another is picked, in float32.
Routing plain_router(const FfnDesc& desc, const at::Tensor& logits, const at::Tensor& bias);

/// Same ids; weights within 1e-6.
void check_same(const Routing& a, const Routing& b);

}  // namespace aqhost
