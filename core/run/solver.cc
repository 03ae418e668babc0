#include "run/solver.h"

#include <ATen/Parallel.h>

#include <map>

#include "run/beside.h"

namespace aqhost {
namespace {

/// [E, ...]. A single tensor is not copied, because it may be as large as the rest of a layer.
at::Tensor stack(const std::vector<at::Tensor>& tensors) {
  return tensors.size() == 1 ? tensors.front().unsqueeze(0) : at::stack(tensors);
}

/// The shifts as [E, in, in]; undefined if no Hessian has one.
at::Tensor stack_shifts(const std::vector<Hessian>& hessians) {
  std::vector<at::Tensor> shifts;
  bool any = false;
  for (const Hessian& h : hessians) {
    any = any || h.shift().defined();
    shifts.push_back(h.shift().defined() ? h.shift() : at::zeros_like(h.sum()));
  }
  return any ? stack(shifts) : at::Tensor();
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

Solver::Solver(const RunSettings& settings, SolutionSink sink, PhaseTimer& timer)
    : settings_(settings), sink_(std::move(sink)), timer_(timer) {}

std::vector<NewWeight> Solver::solve(const SolveTask& task) {
  // usually all groups go into one batch
  using FormatKey = std::pair<const Format*, std::string>;
  std::map<std::pair<FormatKey, int64_t>, std::vector<SolveGroup>> batches;
  for (const SolveGroup& group : task.groups) {
    group.hessian.check_finite(group.members.front().planned->module->name);
    std::map<FormatKey, std::vector<SolveGroup::Member>> parts;
    for (const SolveGroup::Member& m : group.members)
      parts[{m.planned->format.get(), m.planned->recipe.algorithm}].push_back(m);
    for (auto& [key, members] : parts) {
      int64_t rows = 0;
      for (const SolveGroup::Member& m : members) rows += m.weight.size(0);
      batches[{key, rows}].push_back(
          {std::move(members), group.hessian, group.tokens, group.weight, group.starved});
    }
  }
  std::vector<NewWeight> weights;
  for (const auto& [key, groups] : batches) solve_alike(groups, weights);
  return weights;
}

void Solver::solve_alike(const std::vector<SolveGroup>& groups, std::vector<NewWeight>& weights) {
  std::vector<at::Tensor> matrices;
  std::vector<Hessian> hessians;
  for (const SolveGroup& group : groups) {
    std::vector<at::Tensor> rows;
    for (const SolveGroup::Member& m : group.members) rows.push_back(m.weight);
    matrices.push_back(at::cat(rows).to(at::kFloat));
    hessians.push_back(group.hessian);
  }
  const PlannedModule& first = *groups.front().members.front().planned;
  timer_.begin("solve");
  const QuantizedBatch solved = solve_weights(first, settings_, stack(matrices), hessians);
  for (std::size_t e = 0; e < groups.size(); e++) {
    int64_t row = 0;
    for (const SolveGroup::Member& m : groups[e].members) {
      const int64_t rows = m.weight.size(0);
      weights.push_back(
          {m.planned->module, solved.values[static_cast<int64_t>(e)].narrow(0, row, rows)});
      row += rows;
    }
  }
  timer_.begin("pack");
  hand_over(groups, solved);
  timer_.begin("calibrate");
}

/// Makes a solution of each member's rows, and gives all of them to the sink.
void Solver::hand_over(const std::vector<SolveGroup>& groups, const QuantizedBatch& solved) {
  struct Place {
    int64_t matrix, row, rows;
  };
  std::vector<Solution> solutions;
  std::vector<Place> places;
  for (std::size_t e = 0; e < groups.size(); e++) {
    int64_t row = 0;
    for (const SolveGroup::Member& m : groups[e].members) {
      Solution solution;
      solution.planned = m.planned;
      solution.rtn = solved.rtn[e];
      solution.calibrated = true;
      solution.tokens = groups[e].tokens;
      solution.weight = groups[e].weight;
      solution.starved = groups[e].starved;
      solution.input_global = m.input_global;
      solutions.push_back(std::move(solution));
      places.push_back({static_cast<int64_t>(e), row, m.weight.size(0)});
      row += m.weight.size(0);
    }
  }
  const bool beside = works_beside(solved.values.device());
  QuantizedBatch here = solved;
  here.move_codes(at::kCPU);
  here.values.reset();
  auto fill_and_give = [this, here = std::move(here), places = std::move(places),
                        solutions = std::move(solutions)]() mutable {
    at::parallel_for(0, static_cast<int64_t>(places.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        Solution& solution = solutions[static_cast<std::size_t>(i)];
        const auto [matrix, row, rows] = places[static_cast<std::size_t>(i)];
        const auto sum = [row = row, rows = rows](const at::Tensor& losses) {
          return losses.narrow(0, row, rows).sum(at::kDouble).item<double>();
        };
        solution.matrix = here.matrix(matrix, row, rows);
        solution.loss = sum(here.loss[matrix]);
        solution.rtn_loss = sum(here.rtn_loss[matrix]);
      }
    });
    sink_(std::move(solutions));
  };
  wait();
  if (beside)
    handing_over_ = std::async(std::launch::async, std::move(fill_and_give));
  else
    fill_and_give();
}

void Solver::wait() {
  if (handing_over_.valid()) handing_over_.get();
}

}  // namespace aqhost
