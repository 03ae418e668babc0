#pragma once

#include <ATen/ATen.h>

#include "plugin/format.h"

namespace aqhost {

/// The weights of a quantized matrix as positions in the cells of a described grid. Each grid value
/// has a cell around it; in it, position 0 is the border to the next lower value, and position 1
/// the border to the next higher value. A weight that crosses a border takes the value beyond it.
/// Weights start at their original values, moved into the cells of their codes (to position 0.05 or
/// 0.95) if they lie outside.
class Cells {
 public:
  static bool possible(const FormatDesc& desc);

  /// `weights` [rows, cols], on the CPU, are the original weights; `matrix` has their codes and
  /// scales. The cells and the results are on `device`.
  Cells(const FormatDesc& desc, const at::Tensor& weights, const QuantizedMatrix& matrix,
        at::Device device = at::kCPU);

  /// The current quantized values, [rows, cols], as a new tensor.
  at::Tensor weights() const;

  /// Moves every weight by `size` of its cell against the sign of its gradient. In total a weight
  /// moves at most half a cell from where it started, so that it crosses at most one border.
  void move(const at::Tensor& gradient, double size);

  /// Writes the current codes to `matrix`.
  void store(QuantizedMatrix& matrix) const;

 private:
  std::vector<float> levels_;     // distinct grid values, rising
  std::vector<uint8_t> code_of_;  // level -> code
  at::Tensor level_;              // [rows, cols] i32, level at the start
  std::vector<bool> falls_;       // [rows * cols]: whether values fall as levels rise
  at::Tensor place_, least_;      // [rows, cols]; place_ is within [least_, least_ + 1]
  at::Tensor value_, up_, down_;  // [rows, cols]: value of level_, distances to the next ones
};

}  // namespace aqhost
