#pragma once

#include <ATen/ATen.h>

#include "plugin/format.h"
#include "quant/batch.h"
#include "quant/factor.h"

namespace aqhost {

/// GPTQ by the format's callbacks: one matrix after another, vector_dim columns at a time.
void solve_by_callbacks(const Format& format, const at::Tensor& weights, const Factors& factors,
                        const at::Tensor& importance, bool static_groups, QuantizedBatch& batch);

}  // namespace aqhost
