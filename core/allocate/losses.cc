#include "allocate/losses.h"

#include <algorithm>

namespace aqhost {
namespace {

/// The losses of these modules by candidate, and then their weights.
std::vector<double> values_of(const CandidateLosses& losses,
                              const std::vector<std::size_t>& modules) {
  std::vector<double> values;
  for (const auto& of_candidate : losses.loss)
    for (const std::size_t i : modules) values.push_back(of_candidate[i]);
  for (const std::size_t i : modules) values.push_back(losses.weight[i]);
  return values;
}

void set_values(CandidateLosses& losses, const std::vector<std::size_t>& modules,
                const std::vector<double>& values) {
  auto next = values.begin();
  for (auto& of_candidate : losses.loss)
    for (const std::size_t i : modules) of_candidate[i] = *next++;
  for (const std::size_t i : modules) losses.weight[i] = *next++;
}

}  // namespace

CandidateLosses measure_losses(const MeasureSetup& setup, const at::Tensor& windows,
                               MeasuredSteps& steps, int32_t earlier) {
  const std::size_t modules = setup.plan.modules.size();
  CandidateLosses losses;
  losses.loss.assign(setup.candidates.size(), std::vector<double>(modules, 0));
  losses.weight.assign(modules, 0);
  const int32_t finished = std::max(0, steps.finished() - earlier);
  for (int32_t l = 0; l < finished; l++)
    set_values(losses, modules_of_layer(setup.model, l),
               steps.result(earlier + l).get<std::vector<double>>());
  const CandidateSink sink{[&](std::size_t c, const Solution& s) {
                             losses.loss[c][s.planned->module->index] = s.loss;
                             losses.weight[s.planned->module->index] = s.weight;
                           },
                           {}};
  setup.observer.begin("measuring losses", setup.model.desc().n_layers, "layers");
  walk_candidates(setup, windows, finished, sink, [&](int32_t l) {
    const std::vector<std::size_t> of_layer = modules_of_layer(setup.model, l);
    std::vector<double> values = values_of(losses, of_layer);
    setup.comm.sum(values);
    set_values(losses, of_layer, values);
    steps.finish(values);
  });
  setup.observer.end();
  return losses;
}

}  // namespace aqhost
