#include "allocate/alpha.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "base/interrupt.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr int64_t kBlockSide = 128, kMaximumBlocks = 256;

/// The blocks [n, side, side] of a matrix, in float64.
at::Tensor blocks_of(const at::Tensor& weight) {
  const int64_t side = std::min({kBlockSide, weight.size(0), weight.size(1)});
  const int64_t down = weight.size(0) / side, across = weight.size(1) / side;
  const int64_t all = down * across, used = std::min(all, kMaximumBlocks);
  std::vector<at::Tensor> blocks;
  for (int64_t i = 0; i < used; i++) {
    const int64_t block = i * all / used;
    blocks.push_back(
        weight.narrow(0, block / across * side, side).narrow(1, block % across * side, side));
  }
  return at::stack(blocks).to(at::kDouble);
}

/// Hill's estimate from values > 0.
double hill_alpha(std::vector<double> values) {
  const auto n = static_cast<int64_t>(values.size());
  const int64_t k = std::min(n - 1, std::max<int64_t>(10, n / 10));
  if (k < 1) return 1;
  std::sort(values.begin(), values.end());
  double sum = 0;
  const double reference = values[static_cast<std::size_t>(n - 1 - k)];
  for (int64_t i = n - k; i < n; i++)
    sum += std::log(values[static_cast<std::size_t>(i)] / reference);
  return 1 + static_cast<double>(k) / std::max(sum, 1e-12);
}

}  // namespace

WeightSpectrum weight_spectrum(const at::Tensor& weight) {
  const at::Tensor blocks = blocks_of(weight);
  const at::Tensor values =
      at::linalg_eigvalsh(at::bmm(blocks, blocks.transpose(1, 2))).flatten().clamp_min_(1e-30);
  const auto eigenvalues = span_of<double>(values.contiguous());
  return {hill_alpha({eigenvalues.begin(), eigenvalues.end()}),
          at::var(weight, /*unbiased=*/false).item<double>()};
}

std::vector<WeightSpectrum> weight_spectra(const Source& source, const Plan& plan, Comm& comm,
                                           RunObserver& observer) {
  std::vector<double> values(2 * plan.modules.size(), 0);  // of all modules: alpha and variance
  const auto count = static_cast<int64_t>(plan.modules.size());
  const int64_t at_once = int64_t{4} * at::get_num_threads() * comm.size();
  observer.begin("measuring spectra", static_cast<double>(count), "modules");
  for (int64_t begin = 0; begin < count; begin += at_once) {
    check_interrupt();
    observer.update(static_cast<double>(begin),
                    plan.modules[static_cast<std::size_t>(begin)].module->name);
    at::parallel_for(begin, std::min(count, begin + at_once), 1, [&](int64_t first, int64_t last) {
      const at::NoGradGuard no_grad;
      for (int64_t i = first; i < last; i++) {
        const auto index = static_cast<std::size_t>(i);
        const PlannedModule& m = plan.modules[index];
        if (!m.format || i % comm.size() != comm.rank()) continue;
        const WeightSpectrum spectrum = weight_spectrum(
            read_tensor(source, m.module->weight, {m.module->out_features, m.module->in_features}));
        values[2 * index] = spectrum.alpha;
        values[2 * index + 1] = spectrum.variance;
      }
    });
  }
  comm.sum(values);
  observer.end();
  source.check_unchanged();
  std::vector<WeightSpectrum> spectra;
  for (std::size_t i = 0; i < values.size(); i += 2) spectra.push_back({values[i], values[i + 1]});
  return spectra;
}

}  // namespace aqhost
