#include "run/round_to_nearest.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <tuple>

#include "base/interrupt.h"
#include "quant/quantize.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// Modules that are rounded together, as the rows of one matrix.
using ModuleGroup = std::vector<const PlannedModule*>;

/// The planned modules of a layer (-1: of those outside all layers). Modules that engines fuse are
/// in one group if their format has parameters of a whole matrix, because they must then share
/// these; all other modules have a group of their own.
std::vector<ModuleGroup> module_groups(const Plan& plan, int32_t layer) {
  std::vector<ModuleGroup> groups;
  std::map<std::tuple<int32_t, int32_t, int32_t, const Format*>, std::size_t> shared;
  for (const PlannedModule& m : plan.modules) {
    const auto& key = m.module->key;
    if (!m.format || std::max(key.layer, -1) != layer) continue;
    const bool shares_parameters =
        m.format->desc().tensor_params != 0 || m.format->desc().group_size == 0;
    if (shares_parameters) {
      const auto [it, added] = shared.try_emplace(
          {key.layer, fused_role(key.role), key.expert, m.format.get()}, groups.size());
      if (!added) {
        groups[it->second].push_back(&m);
        continue;
      }
    }
    groups.push_back({&m});
  }
  return groups;
}

std::vector<Solution> round_group(const Source& original, const ModuleGroup& group) {
  std::vector<at::Tensor> weights;
  for (const PlannedModule* m : group)
    weights.push_back(read_tensor(original, m->module->weight,
                                  {m->module->out_features, m->module->in_features}));
  const QuantizedBatch batch =
      quantize_rtn(*group.front()->format, at::cat(weights).unsqueeze(0), {}, {});
  std::vector<Solution> solutions;
  int64_t row = 0;
  for (const PlannedModule* m : group) {
    Solution solution;
    solution.planned = m;
    solution.matrix = batch.matrix(0, row, m->module->out_features);
    solution.rtn = true;
    row += m->module->out_features;
    solutions.push_back(std::move(solution));
  }
  return solutions;
}

/// Rounds one layer, or this rank's part of it: as many groups at the same time as there are
/// threads and memory for.
void round_layer(const Source& original, const Plan& plan, int32_t layer, UnitSink& sink) {
  constexpr int64_t kMaximumWeights = int64_t{1} << 28;  // 9 bytes each while they are rounded
  std::vector<ModuleGroup> groups;
  std::vector<ModuleGroup> all_groups = module_groups(plan, layer);
  for (std::size_t turn = 0; ModuleGroup & group : all_groups)
    if (turn++ % static_cast<std::size_t>(sink.ranks()) == static_cast<std::size_t>(sink.rank()))
      groups.push_back(std::move(group));
  const auto threads = static_cast<std::size_t>(at::get_num_threads());
  for (std::size_t begin = 0, end = 0; begin < groups.size(); begin = end) {
    check_interrupt();
    int64_t weights = 0;
    for (; end < groups.size() && end - begin < threads &&
           (end == begin || weights < kMaximumWeights);
         end++)
      for (const PlannedModule* m : groups[end]) weights += m->weights();
    std::vector<std::vector<Solution>> rounded(end - begin);
    at::parallel_for(0, static_cast<int64_t>(rounded.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        const auto at = static_cast<std::size_t>(i);
        rounded[at] = round_group(original, groups[begin + at]);
      }
    });
    std::vector<Solution> solutions;
    for (std::vector<Solution>& of_group : rounded)
      std::move(of_group.begin(), of_group.end(), std::back_inserter(solutions));
    sink.take(solutions);
  }
}

}  // namespace

void round_to_nearest(const Source& original, const Plan& plan, int32_t units, UnitSink& sink,
                      PhaseTimer& timer) {
  while (sink.next() < units) {
    const int32_t layer = sink.next() == units - 1 ? -1 : sink.next();
    timer.begin("solve");
    sink.begin_unit();
    round_layer(original, plan, layer, sink);
    sink.finish_unit();
  }
}

}  // namespace aqhost
