#pragma once

#include <ATen/ATen.h>

#include "forward/fake_model.h"

namespace aqhost {

/// The layer of `model`, spelled out in float64 token by token; x [batch, tokens, hidden].
at::Tensor reference_forward(const FakeModel& model, const at::Tensor& x);

/// x [tokens, hidden] f64 through the norm of `role`.
at::Tensor reference_norm(const FakeModel& model, int32_t role, const at::Tensor& x, bool top);

}  // namespace aqhost
