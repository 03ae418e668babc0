#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plugin/format.h"
#include "quant/quantize.h"

namespace aqhost {

/// Rounding and GPTQ of one matrix in one described format, in float64 and without any regard for
/// speed: what core/quant is held against.
struct ReferenceResult {
  std::vector<uint32_t> codes;   // [rows, cols]
  std::vector<float> params;     // [rows, groups, group_params]
  std::vector<double> margin;    // [rows, cols]: from w / step to where another code begins
  std::vector<double> row_loss;  // [rows]
  std::vector<int64_t> order;    // columns as they were solved
  bool failed = false;           // H was not positive definite: rounded to nearest
};

/// weights [rows, cols]; importance [cols] or empty.
ReferenceResult reference_rtn(const FormatDesc& desc, std::span<const float> weights, int64_t cols,
                              std::span<const float> importance);

/// weights [rows, cols], hessian [cols, cols]; percdamp and actorder of `options`.
ReferenceResult reference_gptq(const FormatDesc& desc, std::span<const float> weights, int64_t cols,
                               std::span<const float> hessian, const GptqOptions& options);

}  // namespace aqhost
