#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "plugin/format.h"

namespace aqhost {

struct GptqOptions {
  double percdamp = 0.1;   // of the mean diagonal of H
  bool actorder = true;    // columns by falling H_ii; groups stay those of the original columns
  int64_t block = 128;     // columns solved between two trailing updates
  int sweeps = 1;          // see sweep_described(); 0: GPTQ alone
  double feedback = 0.75;  // share of the shift that is made up for
};

/// Matrices of one shape in one format; E is a batch dimension (the experts of a layer). Losses are
/// of each row, 1/2 d H d^T with d = w - q and H damped as the solver used it, so that GPTQ's and
/// RTN's compare; 0 where there was no H. With shifts, w is what quantize_gptq() aims at.
struct QuantizedBatch {
  int64_t cols = 0;           // in
  at::Tensor codes;           // [E, out, in / vector_dim] u8, or i16 holding u16 above 8 bits
  at::Tensor params;          // [E, out, groups, group_params] f32
  at::Tensor tensor_params;   // [E, tensor_params] f32
  at::Tensor values;          // [E, out, in] f32: what the codes stand for
  at::Tensor loss, rtn_loss;  // [E, out] f64
  std::vector<bool> rtn;      // E: rounded to nearest, as asked for or as H could not be factored

  /// Rows [begin, begin + rows) of matrix e; codes and parameters are on the CPU.
  QuantizedMatrix matrix(int64_t e, int64_t begin, int64_t rows) const;

  /// All but the values to another device; and all.
  void move_codes(at::Device device);
  QuantizedBatch to(at::Device device) const;
};

/// GPTQ (Frantar et al., arXiv:2210.17323) on weights [E, out, in] f32 with hessians [E, in, in]
/// f32 (sum of s x x^T). Dead columns (H_ii = 0) are rounded as they are. Damping grows tenfold up
/// to three times where Cholesky fails, then that matrix is rounded to nearest. Scales are fitted
/// to the original columns, weighted by H's diagonal: before the solve with act-order, at each
/// group's start from the updated weights without. A format whose codes stand for several weights
/// is solved in the order of its columns. Error if a Hessian is not finite. Deterministic for one
/// thread count. On a GPU, if that is where everything is: the same arithmetic, sums in another
/// order. A format that the GPU module cannot round is solved on the CPU meanwhile.
///
/// With `shifts` M [E, in, in] (sum of s (x0 - x) x^T, x0 the original model's input and x the
/// quantized one's) what is solved for is not W but W + feedback * W M H^-1: with feedback 1 the
/// weights whose output on x is nearest to that of W on x0, so that a layer makes up for the errors
/// of those before it (as GPTAQ does, arXiv:2504.02692). All of it fits the calibration text more
/// than others; tools/bench/ACCURACY.md has the measurements behind the defaults.
QuantizedBatch quantize_gptq(const Format& format, const at::Tensor& weights,
                             const at::Tensor& hessians, const GptqOptions& options,
                             const at::Tensor& shifts = {});

/// Round to nearest. `hessians` may be undefined; where it is given, its diagonal weighs the scale
/// search and the losses are filled in (damped by percdamp as above).
QuantizedBatch quantize_rtn(const Format& format, const at::Tensor& weights,
                            const at::Tensor& hessians, const GptqOptions& options);

}  // namespace aqhost
