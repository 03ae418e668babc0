#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "plugin/format.h"
#include "quant/batch.h"
#include "quant/factor.h"

namespace aqhost {

/// GPTQ for formats that the host rounds itself. All matrices of the batch are solved at once, in
/// blocks of about `block` columns. With `actorder`, `batch.params` holds the parameters of all
/// groups; without it, they are fitted during the solve. Fills codes, values and loss.
void solve_described(const Format& format, const at::Tensor& weights, const Factors& factors,
                     const at::Tensor& importance, bool actorder, int64_t block,
                     QuantizedBatch& batch);

}  // namespace aqhost
