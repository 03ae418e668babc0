#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "plugin/format.h"

namespace aqhost {

/// Matrices of one shape in one format. E is a batch dimension (the experts of a layer). There is
/// one loss per row: 1/2 d H d^T with d = w - q, where H is damped as in the solver, so that the
/// losses of GPTQ and of rounding to nearest can be compared; 0 if there was no H. With shifts, w
/// is the corrected weight that quantize_gptq() solves for.
struct QuantizedBatch {
  int64_t cols = 0;           // number of input features
  at::Tensor codes;           // [E, out, in / vector_dim] u8, or i16 holding u16 above 8 bits
  at::Tensor params;          // [E, out, groups, group_params] f32
  at::Tensor tensor_params;   // [E, tensor_params] f32
  at::Tensor values;          // [E, out, in] f32: the values of the codes
  at::Tensor loss, rtn_loss;  // [E, out] f64
  std::vector<bool> rtn;      // E: rounded to nearest, as asked for or for lack of a factor

  /// Rows [begin, begin + rows) of matrix e. Codes and parameters must be on the CPU.
  QuantizedMatrix matrix(int64_t e, int64_t begin, int64_t rows) const;

  /// move_codes() moves everything except the values to another device; to() returns a copy with
  /// everything there.
  void move_codes(at::Device device);
  QuantizedBatch to(at::Device device) const;
};

}  // namespace aqhost
