#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plugin/format.h"
#include "quant/quantize.h"

namespace aqhost {

/// Rounding and GPTQ of one matrix in a described format, written for clarity and computed in
/// float64. The tests compare core/quant with it. Two-level scales are fitted by TwoLevelFit of the
/// SDK, which has tests of its own.
struct ReferenceResult {
  std::vector<uint32_t> codes;   // [rows, cols]
  std::vector<float> params;     // [rows, groups, group_params]
  std::vector<double> margin;    // [rows, cols]: distance of w / step from the nearest other code
  std::vector<double> row_loss;  // [rows]
  std::vector<int64_t> order;    // the columns in the order in which they were solved
  bool failed = false;  // H was not positive definite, so the weights are rounded to nearest
};

/// `weights` is [rows, cols]; `importance` is [cols], or empty for what fit_groups() takes then.
ReferenceResult reference_rtn(const FormatDesc& desc, std::span<const float> weights, int64_t cols,
                              std::span<const float> importance);

/// `weights` is [rows, cols], `hessian` [cols, cols]. Uses percdamp and actorder of `options`.
ReferenceResult reference_gptq(const FormatDesc& desc, std::span<const float> weights, int64_t cols,
                               std::span<const float> hessian, const GptqOptions& options);

}  // namespace aqhost
