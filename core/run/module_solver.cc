#include "run/module_solver.h"

#include <ATen/Parallel.h>

#include <map>

#include "run/beside.h"

namespace aqhost {
namespace {

/// [E, ...]; a single one is not copied: it may be as large as the rest of a layer.
at::Tensor stack(const std::vector<at::Tensor>& tensors) {
  return tensors.size() == 1 ? tensors.front().unsqueeze(0) : at::stack(tensors);
}

/// [E, in, in]; undefined if no Hessian has a shift.
at::Tensor stack_shifts(const std::vector<Hessian>& hessians) {
  std::vector<at::Tensor> shifts;
  bool any = false;
  for (const Hessian& h : hessians) {
    any = any || h.shift().defined();
    shifts.push_back(h.shift().defined() ? h.shift() : at::zeros_like(h.sum()));
  }
  return any ? stack(shifts) : at::Tensor();
}

/// Codes, parameters and losses of the `rows` rows from `place` (matrix, first row) on.
void fill(ModuleResult& result, const QuantizedBatch& solved, std::pair<int64_t, int64_t> place,
          int64_t rows) {
  const auto [e, row] = place;
  result.matrix = solved.matrix(e, row, rows);
  result.loss = solved.loss[e].narrow(0, row, rows).sum(at::kDouble).item<double>();
  result.rtn_loss = solved.rtn_loss[e].narrow(0, row, rows).sum(at::kDouble).item<double>();
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
    return quantize_rtn(*module.format, weights, stack(sums), options);
  return quantize_gptq(*module.format, weights, stack(sums), options, stack_shifts(hessians));
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
    all.hessians[e].check_finite(all.groups[e].modules.front()->module->name);
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
  const QuantizedBatch solved = solve_weights(first, settings_, stack(weights), batch.hessians);
  timer_.begin("pack");
  finish(batch, solved);
  timer_.begin("calibrate");
}

/// Gives the layer its new weights and the sink the modules, each the rows that are its own.
void ModuleSolver::finish(const SolveBatch& batch, const QuantizedBatch& solved) {
  SolvedModules modules;
  std::vector<std::pair<int64_t, int64_t>> places;  // of each: matrix, first row
  for (std::size_t i = 0; i < batch.groups.size(); i++) {
    const SharedInput& group = batch.groups[i];
    const auto e = static_cast<int64_t>(i);
    int64_t row = 0;
    for (const PlannedModule* m : group.modules) {
      const int64_t rows = m->module->out_features;
      const at::Tensor values = solved.values[e].narrow(0, row, rows);
      if (settings_.sequential)
        layer_.set_weight(*m->module, values);
      else
        pending_.emplace_back(m->module, values.clone());
      modules.emplace_back(m, ModuleResult{{},
                                           0,
                                           0,
                                           solved.rtn[i],
                                           true,
                                           group.tokens,
                                           group.weight,
                                           group.starved,
                                           rounding_.global(*m)});
      places.emplace_back(e, row);
      row += rows;
    }
  }
  QuantizedBatch here = solved;
  here.move_codes(at::kCPU);
  here.values.reset();
  auto hand_over = [this, here = std::move(here), places = std::move(places),
                    modules = std::move(modules)]() mutable {
    at::parallel_for(0, static_cast<int64_t>(modules.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        auto& [m, result] = modules[static_cast<std::size_t>(i)];
        fill(result, here, places[static_cast<std::size_t>(i)], m->module->out_features);
      }
    });
    sink_(std::move(modules));
  };
  wait();
  if (!works_beside(layer_.options().device())) return hand_over();
  finishing_ = std::async(std::launch::async, std::move(hand_over));
}

void ModuleSolver::wait() {
  if (finishing_.valid()) finishing_.get();
}

void ModuleSolver::use_pending() {
  for (const auto& [module, values] : pending_) layer_.set_weight(*module, values);
  pending_.clear();
}

}  // namespace aqhost
