#include "pipeline/module_solver.h"

#include <map>

namespace aqhost {
namespace {

/// [E, in, in]; undefined if no Hessian has a shift.
at::Tensor stack_shifts(const std::vector<Hessian>& hessians) {
  std::vector<at::Tensor> shifts;
  bool any = false;
  for (const Hessian& h : hessians) {
    any = any || h.shift().defined();
    shifts.push_back(h.shift().defined() ? h.shift() : at::zeros_like(h.sum()));
  }
  return any ? at::stack(shifts) : at::Tensor();
}

}  // namespace

QuantizedBatch solve_weights(const PlannedModule& module, const RunSettings& settings,
                             const at::Tensor& weights, const std::vector<Hessian>& hessians) {
  GptqOptions options;
  options.percdamp = settings.percdamp;
  options.actorder = settings.actorder;
  options.feedback = settings.error_feedback;
  std::vector<at::Tensor> sums;
  for (const Hessian& h : hessians) sums.push_back(h.sum());
  if (module.recipe.algorithm != "gptq")
    return quantize_rtn(*module.format, weights, at::stack(sums), options);
  return quantize_gptq(*module.format, weights, at::stack(sums), options, stack_shifts(hessians));
}

ModuleSolver::ModuleSolver(const RunSettings& settings, Layer& layer, const InputRounding& rounding,
                           ModuleSink sink, PhaseTimer& timer)
    : settings_(settings),
      layer_(layer),
      rounding_(rounding),
      sink_(std::move(sink)),
      timer_(timer) {}

void ModuleSolver::solve_one(std::vector<const PlannedModule*> modules, const Hessian& hessian) {
  if (modules.empty()) return;
  solve({{{std::move(modules), hessian.tokens(), hessian.weight(), false}}, {hessian}});
}

void ModuleSolver::solve(const SolveBatch& all) {
  // One batch for all that share format, algorithm and shape; usually there is one.
  using FormatKey = std::pair<const Format*, std::string>;
  std::map<std::pair<FormatKey, int64_t>, SolveBatch> batches;
  for (std::size_t e = 0; e < all.groups.size(); e++) {
    std::map<FormatKey, SharedInput> parts;
    for (const PlannedModule* m : all.groups[e].modules) {
      const FormatKey key{m->format.get(), m->recipe.algorithm};
      auto [it, added] = parts.try_emplace(key, all.groups[e]);
      if (added) it->second.modules.clear();
      it->second.modules.push_back(m);
    }
    for (auto& [key, part] : parts) {
      int64_t rows = 0;
      for (const PlannedModule* m : part.modules) rows += m->module->out_features;
      SolveBatch& batch = batches[{key, rows}];
      batch.groups.push_back(std::move(part));
      batch.hessians.push_back(all.hessians[e]);
    }
  }
  for (const auto& [key, batch] : batches) solve_alike(batch);
}

void ModuleSolver::solve_alike(const SolveBatch& batch) {
  std::vector<at::Tensor> weights;
  for (const SharedInput& group : batch.groups) {
    std::vector<at::Tensor> rows;
    for (const PlannedModule* m : group.modules) rows.push_back(layer_.weight(*m->module));
    weights.push_back(at::cat(rows).to(at::kFloat));
  }
  const PlannedModule& first = *batch.groups.front().modules.front();
  timer_.begin("solve");
  const QuantizedBatch solved = solve_weights(first, settings_, at::stack(weights), batch.hessians);
  timer_.begin("pack");
  for (std::size_t e = 0; e < batch.groups.size(); e++)
    finish(batch.groups[e], solved, static_cast<int64_t>(e));
  timer_.begin("calibrate");
}

/// Hands the rows of matrix `e` to the modules they belong to.
void ModuleSolver::finish(const SharedInput& group, const QuantizedBatch& solved, int64_t e) {
  int64_t row = 0;
  for (const PlannedModule* m : group.modules) {
    const int64_t rows = m->module->out_features;
    const at::Tensor values = solved.values[e].narrow(0, row, rows);
    if (settings_.sequential)
      layer_.set_weight(*m->module, values);
    else
      pending_.emplace_back(m->module, values.clone());
    const auto sum = [&](const at::Tensor& losses) {
      return losses[e].narrow(0, row, rows).sum(at::kDouble).item<double>();
    };
    sink_(*m, {solved.matrix(e, row, rows), sum(solved.loss), sum(solved.rtn_loss),
               solved.rtn[static_cast<std::size_t>(e)], true, group.tokens, group.weight,
               group.starved, rounding_.global(*m)});
    row += rows;
  }
}

void ModuleSolver::use_pending() {
  for (const auto& [module, values] : pending_) layer_.set_weight(*module, values);
  pending_.clear();
}

}  // namespace aqhost
