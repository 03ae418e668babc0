#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "base/observer.h"
#include "checkpoint/source.h"
#include "plan/plan.h"
#include "run/comm.h"

namespace aqhost {

/// How heavy the tail of a matrix's spectrum is (PL Alpha Hill), and how large its elements are.
struct WeightSpectrum {
  double alpha = 0;     // the smaller, the heavier the tail; at least 1
  double variance = 0;  // of the elements
};

/// The spectrum of a weight W [out, in] f32 on the CPU, as AlphaQ has it (arXiv:2606.04980, with
/// FARMS, the sampling of matrices of one aspect ratio). W is divided from its first row and column
/// on into square blocks of side min(128, out, in) that do not overlap; what is left over at the
/// ends is not used. Of more than 256 blocks, 256 count: number floor(i n / 256) of n, row by row.
/// With the eigenvalues of B B^T of all blocks B, n of them, rising as l_1 ... l_n, and
/// k = min(n - 1, max(10, floor(n / 10))), Hill's estimate is
///   alpha = 1 + k / (sum over the last k of log(l_i / l_(n-k))).
WeightSpectrum weight_spectrum(const at::Tensor& weight);

/// weight_spectrum() of every module that the plan quantizes; zeros for the others. The same for
/// the same checkpoint, without any data. Ranks share the modules, and all get the result.
std::vector<WeightSpectrum> weight_spectra(const Source& source, const Plan& plan, Comm& comm,
                                           RunObserver& observer);

}  // namespace aqhost
