#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "plugin/format.h"
#include "quant/batch.h"

namespace aqhost {

struct GptqOptions {
  double percdamp = 0.1;     // relative to the mean of H's diagonal
  bool actorder = true;      // columns by falling H_ii; groups stay those of the original order
  int64_t block = 128;       // columns solved between two updates of the columns after them
  int sweeps = 1;            // see sweep_described(); 0: only GPTQ
  double feedback = 0.75;    // share of the shift that is made up for
  int64_t rows_at_once = 0;  // see quantize_gptq(); a multiple of kProductRows, or 0: all rows
  bool tf32 = true;          // a GPU may round the factors of matrix products to TF32
};

/// GPTQ (Frantar et al., arXiv:2210.17323) on weights [E, out, in] f32 with hessians [E, in, in]
/// f32 (sum of s x x^T). Weights in dead columns (H_ii = 0) are rounded to nearest. If Cholesky
/// fails, damping grows tenfold, up to three times; then the matrix is rounded to nearest. Scales
/// are fitted to the original columns, weighted by H's diagonal: with act-order before the solve,
/// without it at the start of each group, from the updated weights. A format whose codes stand for
/// several weights is solved in the order of its columns. Throws NotFinite (see factor.h) if a
/// Hessian or a shift is not finite. The result is deterministic for one number of threads. If all
/// tensors are on a GPU, the GPU adds in another order, and with options.tf32 it rounds the factors
/// of matrix products to TF32; a format that the GPU module cannot round is solved on the CPU.
///
/// With rows_at_once, the rows of a matrix are solved in parts that share its factors, which takes
/// less memory; the last part may have up to 63 more rows. Parameters of whole matrices are still
/// fitted to all rows. On a CPU, the result has the same bytes. Memory is also saved if the caller
/// moves its tensors here: each is freed when it is no longer needed.
///
/// Shifts M [E, in, in] are the sums of s (x0 - x) x^T, where x0 is the original model's input and
/// x the quantized model's. With shifts, the solver approximates W + feedback * W M H^-1 in place
/// of W. With feedback 1 these are the weights whose output on x is nearest to that of W on x0, so
/// that a layer makes up for the errors of earlier layers (as GPTAQ does, arXiv:2504.02692). The
/// full correction overfits the calibration text; tools/bench/ACCURACY.md has the measurements
/// behind the defaults.
QuantizedBatch quantize_gptq(const Format& format, at::Tensor weights, at::Tensor hessians,
                             const GptqOptions& options, at::Tensor shifts = {});

/// Rounds to nearest. If `hessians` is given, its diagonal weights the scale search, and the losses
/// are filled in (with H damped by percdamp as above). If it is undefined, the search weights
/// errors by the sizes of the weights (see fit_groups()), on the CPU.
QuantizedBatch quantize_rtn(const Format& format, const at::Tensor& weights,
                            const at::Tensor& hessians, const GptqOptions& options);

}  // namespace aqhost
