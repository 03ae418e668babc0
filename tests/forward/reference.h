#pragma once

#include <ATen/ATen.h>

#include "forward/fake_model.h"

namespace aqhost {

/// The output of the layer of `model` for x [batch, tokens, hidden], computed token by token in
/// float64.
at::Tensor reference_forward(const FakeModel& model, const at::Tensor& x);

/// Applies the norm of `role` to x [tokens, hidden] f64. With `eps` 0 it has that of the model.
at::Tensor reference_norm(const FakeModel& model, int32_t role, const at::Tensor& x, bool top,
                          double eps = 0);

}  // namespace aqhost
