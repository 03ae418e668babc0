#pragma once

#include <ATen/ATen.h>

#include "plugin/format.h"

namespace aqhost {

/// The weights of a quantized matrix as places in the cells of a described grid: 0 is the border to
/// the next lower value, 1 that to the next higher, and a weight across a border takes that value.
/// Starts where the original weights lie, moved into the cells of their codes (to 0.05 or 0.95).
class Cells {
 public:
  static bool possible(const FormatDesc& desc);

  /// weights [rows, cols], on the CPU: the original ones; matrix: their codes and scales. The cells
  /// and what they give are on `device`.
  Cells(const FormatDesc& desc, const at::Tensor& weights, const QuantizedMatrix& matrix,
        at::Device device = at::kCPU);

  /// What they stand for now, [rows, cols], a new tensor.
  at::Tensor weights() const;

  /// Every weight by `size` of its cell against the sign of its gradient; half a cell in all at
  /// most, so that no weight passes more than one border.
  void move(const at::Tensor& gradient, double size);

  /// The codes as they are now.
  void store(QuantizedMatrix& matrix) const;

 private:
  std::vector<float> levels_;     // different grid values, rising
  std::vector<uint8_t> code_of_;  // level -> code
  at::Tensor level_;              // [rows, cols] i32, where it started
  at::Tensor place_, least_;      // [rows, cols]; place within [least, least + 1]
  at::Tensor value_, up_, down_;  // [rows, cols]: the value there, and steps to the next ones
};

}  // namespace aqhost
