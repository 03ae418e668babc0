#include "allocate/scores.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

namespace aqhost {

Scores loss_scores(const CandidateLosses& losses, const std::vector<double>& sensitivity,
                   const Plan& plan) {
  using Key = std::tuple<int32_t, int32_t, int32_t>;  // layer, role, and whether it is an expert
  const auto key_of = [](const PlannedModule& m) {
    return Key{m.module->key.layer, m.module->key.role, std::min(m.module->key.expert, 0)};
  };
  struct Sums {
    double sensitivity = 0, weight = 0;
  };
  std::map<Key, Sums> sums;
  for (std::size_t i = 0; i < plan.modules.size(); i++) {
    Sums& sum = sums[key_of(plan.modules[i])];
    sum.sensitivity += sensitivity[i];
    sum.weight += losses.weight[i];
  }
  Scores scores = losses.loss;
  for (auto& of_candidate : scores)
    for (std::size_t i = 0; i < plan.modules.size(); i++) {
      const Sums& sum = sums[key_of(plan.modules[i])];
      of_candidate[i] *= sum.weight > 0 ? sum.sensitivity / sum.weight : 0;
    }
  return scores;
}

Scores error_scores(const CandidateLosses& losses, int64_t tokens) {
  Scores scores = losses.loss;
  for (auto& of_candidate : scores)
    for (double& score : of_candidate) score /= static_cast<double>(tokens);
  return scores;
}

Scores alpha_scores(const std::vector<WeightSpectrum>& spectra, const Plan& plan,
                    const std::vector<Plan>& candidates) {
  std::vector<double> alphas;
  for (std::size_t i = 0; i < plan.modules.size(); i++)
    if (plan.modules[i].format) alphas.push_back(spectra[i].alpha);
  std::sort(alphas.begin(), alphas.end());
  const std::size_t n = alphas.size();
  const double median = (alphas[(n - 1) / 2] + alphas[n / 2]) / 2;
  Scores scores;
  for (const Plan& candidate : candidates) {
    std::vector<double>& of_candidate = scores.emplace_back(plan.modules.size(), 0);
    for (std::size_t i = 0; i < plan.modules.size(); i++) {
      const PlannedModule& m = candidate.modules[i];
      if (!plan.modules[i].format || !m.format) continue;
      of_candidate[i] = static_cast<double>(m.weights()) * spectra[i].variance * median /
                        spectra[i].alpha * std::pow(4.0, -m.format->desc().element_bits);
    }
  }
  return scores;
}

}  // namespace aqhost
