#include "run/solver.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

#include "base/error.h"
#include "quant/factor.h"
#include "run/beside.h"
#include "run/memory_need.h"

namespace aqhost {
namespace {

/// The bytes of codes that are collected at most before they are given to the sink.
constexpr std::size_t kCollectedBytes = std::size_t{1} << 30;

/// The rank that solves each group: the one that has the least to do so far, where a group costs
/// the operations of factoring its Hessian and of solving its rows.
std::vector<int> deal_groups(const std::vector<SolveGroup>& groups, int ranks) {
  std::vector<double> load(static_cast<std::size_t>(ranks), 0);
  std::vector<int> owners;
  for (const SolveGroup& group : groups) {
    double rows = 0, cols = 0;
    for (const SolveGroup::Member& m : group.members) {
      rows += static_cast<double>(m.weight.size(0));
      cols = static_cast<double>(m.weight.size(1));
    }
    const auto least = std::min_element(load.begin(), load.end());
    *least += cols * cols * (cols / 3 + rows);
    owners.push_back(static_cast<int>(least - load.begin()));
  }
  return owners;
}

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

QuantizedBatch solve_weights(const std::vector<const PlannedModule*>& modules,
                             const RunSettings& settings, at::Tensor weights,
                             std::vector<Hessian> hessians, int64_t room) {
  const PlannedModule& module = *modules.front();
  GptqOptions options;
  options.percdamp = settings.percdamp;
  options.actorder = settings.actorder;
  options.feedback = settings.error_feedback;
  std::vector<at::Tensor> sums;
  for (const Hessian& h : hessians) sums.push_back(h.sum());
  at::Tensor stacked = stack(sums);
  sums.clear();
  try {
    if (module.recipe.algorithm != "gptq")
      return quantize_rtn(*module.format, weights, stacked, options);
    at::Tensor shifts = stack_shifts(hessians);
    hessians.clear();
    options.rows_at_once =
        rows_to_solve_at_once(weights.size(2), weights.size(1),
                              room == 0 ? 0 : std::max<int64_t>(1, room / weights.size(0)));
    return quantize_gptq(*module.format, std::move(weights), std::move(stacked), options,
                         std::move(shifts));
  } catch (const NotFinite& e) {
    fail(
        "{}: the Hessian of its inputs is not finite: the model's activations overflow on the "
        "calibration text",
        modules[e.matrix()]->module->name);
  }
}

void reduce_hessians(Comm& comm, std::vector<Hessian>& hessians, const std::vector<int>& owners) {
  if (comm.size() == 1 || hessians.empty()) return;
  const auto count = static_cast<int64_t>(hessians.size());
  at::Tensor totals = at::zeros({count, 3}, at::kDouble);  // tokens, weight, whether it has a shift
  auto values = totals.accessor<double, 2>();
  const std::vector<double> weights = Hessian::weights_of(hessians);
  for (int64_t i = 0; i < count; i++) {
    const Hessian& h = hessians[static_cast<std::size_t>(i)];
    values[i][0] = static_cast<double>(h.tokens());
    values[i][1] = weights[static_cast<std::size_t>(i)];
    values[i][2] = h.shift().defined() ? 1 : 0;
  }
  comm.sum(totals);
  std::vector<at::Tensor> matrices;
  std::vector<int> their_owners;
  // the sum must not change a matrix that the caller uses again
  const auto add = [&](const at::Tensor& matrix, int owner) {
    matrices.push_back(owner == comm.rank() ? matrix.clone() : matrix);
    their_owners.push_back(owner);
  };
  for (std::size_t i = 0; i < hessians.size(); i++) {
    const Hessian& h = hessians[i];
    add(h.sum(), owners[i]);
    if (values[static_cast<int64_t>(i)][2] > 0)
      add(h.shift().defined() ? h.shift() : at::zeros_like(h.sum()), owners[i]);
  }
  comm.reduce(matrices, their_owners);
  auto next = matrices.begin();
  for (std::size_t i = 0; i < hessians.size(); i++) {
    const auto row = static_cast<int64_t>(i);
    at::Tensor sum = *next++;
    at::Tensor shift = values[row][2] > 0 ? *next++ : at::Tensor();
    if (owners[i] != comm.rank()) sum = shift = at::Tensor();
    hessians[i] = Hessian(std::move(sum), std::move(shift), static_cast<int64_t>(values[row][0]),
                          values[row][1]);
  }
}

DealtTask deal_task(SolveTask task, const std::string& station, Comm& comm, PhaseTimer& timer) {
  const std::vector<int> owners = deal_groups(task.groups, comm.size());
  std::vector<Hessian> hessians;
  for (SolveGroup& group : task.groups) hessians.push_back(std::move(group.hessian));
  comm.station(station + ": reduce");
  timer.begin("reduce");
  reduce_hessians(comm, hessians, owners);
  comm.station(station + ": solve");
  DealtTask dealt{{{}, task.room}, std::move(task.groups), owners};
  for (std::size_t i = 0; i < dealt.groups.size(); i++) {
    if (owners[i] != comm.rank()) continue;
    dealt.own.groups.push_back(dealt.groups[i]);
    dealt.own.groups.back().hessian = std::move(hessians[i]);
  }
  return dealt;
}

std::vector<NewWeight> share_weights(const DealtTask& dealt, const std::vector<NewWeight>& own,
                                     const std::string& station, Comm& comm, PhaseTimer& timer) {
  comm.station(station + ": share");
  timer.begin("share");
  std::map<const Module*, at::Tensor> solved;
  for (const NewWeight& weight : own) solved[weight.module] = weight.values;
  std::vector<NewWeight> weights;
  std::vector<at::Tensor> values;
  std::vector<int> owners;
  for (std::size_t i = 0; i < dealt.groups.size(); i++) {
    for (const SolveGroup::Member& m : dealt.groups[i].members) {
      const at::Tensor like = m.weight;  // the layer would convert the values to its type anyway
      values.push_back(dealt.owners[i] == comm.rank()
                           ? solved.at(m.planned->module).to(like.options()).contiguous()
                           : at::empty(like.sizes(), like.options()));
      owners.push_back(dealt.owners[i]);
      weights.push_back({m.planned->module, values.back()});
    }
  }
  comm.share(values, owners);
  comm.station(station + ": forward");
  timer.begin("calibrate");
  return weights;
}

Solver::Solver(const RunSettings& settings, Comm& comm, std::string station, SolutionSink sink,
               PhaseTimer& timer)
    : settings_(settings),
      comm_(comm),
      station_(std::move(station)),
      sink_(std::move(sink)),
      timer_(timer) {}

std::vector<NewWeight> Solver::solve(SolveTask task) {
  if (comm_.size() == 1) return solve_here(std::move(task));
  DealtTask dealt = deal_task(std::move(task), station_, comm_, timer_);
  return share_weights(dealt, solve_here(std::move(dealt.own)), station_, comm_, timer_);
}

/// Solves groups on this rank.
std::vector<NewWeight> Solver::solve_here(SolveTask task) {
  // usually all groups go into one batch
  using FormatKey = std::pair<const Format*, std::string>;
  std::map<std::pair<FormatKey, int64_t>, std::vector<SolveGroup>> batches;
  for (const SolveGroup& group : task.groups) {
    std::map<FormatKey, std::vector<SolveGroup::Member>> parts;
    for (const SolveGroup::Member& m : group.members)
      parts[{m.planned->format.get(), m.planned->recipe.algorithm}].push_back(m);
    for (auto& [key, members] : parts) {
      int64_t rows = 0;
      for (const SolveGroup::Member& m : members) rows += m.weight.size(0);
      batches[{key, rows}].push_back({std::move(members), group.hessian, group.starved});
    }
  }
  task.groups.clear();
  std::vector<NewWeight> weights;
  for (auto& [key, groups] : batches) solve_alike(std::move(groups), task.room, weights);
  return weights;
}

/// Frees the Hessians of the groups as soon as it can.
void Solver::solve_alike(std::vector<SolveGroup> groups, int64_t room,
                         std::vector<NewWeight>& weights) {
  std::vector<const PlannedModule*> modules;  // the first of each group
  std::vector<at::Tensor> matrices;
  std::vector<Hessian> hessians;
  for (SolveGroup& group : groups) {
    modules.push_back(group.members.front().planned);
    std::vector<at::Tensor> rows;
    for (const SolveGroup::Member& m : group.members) rows.push_back(m.weight);
    matrices.push_back(at::cat(rows).to(at::kFloat));
    hessians.push_back(group.hessian);
    group.hessian.release_sums();
  }
  at::Tensor stacked = stack(matrices);
  matrices.clear();
  timer_.begin("solve");
  const QuantizedBatch solved =
      solve_weights(modules, settings_, std::move(stacked), std::move(hessians), room);
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

/// Makes a solution of each member's rows, and gives all of them to the sink. A GPU solves only a
/// few wide matrices at once, which would not keep all threads busy, so several batches are
/// collected first.
void Solver::hand_over(const std::vector<SolveGroup>& groups, const QuantizedBatch& solved) {
  Unpacked unpacked{solved, {}, {}};
  unpacked.batch.values.reset();
  unpacked.batch.move_codes(at::kCPU);
  for (std::size_t e = 0; e < groups.size(); e++) {
    const double weight = groups[e].hessian.weight();
    int64_t row = 0;
    for (const SolveGroup::Member& m : groups[e].members) {
      Solution solution;
      solution.planned = m.planned;
      solution.rtn = solved.rtn[e];
      solution.calibrated = true;
      solution.tokens = groups[e].hessian.tokens();
      solution.weight = weight;
      solution.starved = groups[e].starved;
      solution.input_global = m.input_global;
      unpacked.solutions.push_back(std::move(solution));
      unpacked.places.push_back({static_cast<int64_t>(e), row, m.weight.size(0)});
      row += m.weight.size(0);
    }
  }
  collected_.push_back(std::move(unpacked));
  std::size_t modules = 0, bytes = 0;
  for (const Unpacked& u : collected_) {
    modules += u.solutions.size();
    bytes += u.batch.codes.nbytes();
  }
  const bool beside = works_beside(solved.values.device());
  if (!beside || bytes >= kCollectedBytes ||
      modules >= 2 * static_cast<std::size_t>(at::get_num_threads()))
    deliver(beside);
}

/// Gives everything that was collected to the sink, in another thread if `beside`.
void Solver::deliver(bool beside) {
  if (handing_over_.valid()) handing_over_.get();
  if (collected_.empty()) return;
  auto fill_and_give = [this, collected = std::exchange(collected_, {})]() mutable {
    std::vector<std::pair<Unpacked*, std::size_t>> all;
    for (Unpacked& u : collected)
      for (std::size_t i = 0; i < u.solutions.size(); i++) all.emplace_back(&u, i);
    at::parallel_for(0, static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const auto [unpacked, index] = all[static_cast<std::size_t>(i)];
        const QuantizedBatch& batch = unpacked->batch;
        Solution& solution = unpacked->solutions[index];
        const auto [matrix, row, rows] = unpacked->places[index];
        const auto sum = [row = row, rows = rows](const at::Tensor& losses) {
          return losses.narrow(0, row, rows).sum(at::kDouble).item<double>();
        };
        solution.matrix = batch.matrix(matrix, row, rows);
        solution.loss = sum(batch.loss[matrix]);
        solution.rtn_loss = sum(batch.rtn_loss[matrix]);
      }
    });
    std::vector<Solution> solutions;
    for (Unpacked& u : collected)
      std::move(u.solutions.begin(), u.solutions.end(), std::back_inserter(solutions));
    sink_(std::move(solutions));
  };
  if (beside)
    handing_over_ = std::async(std::launch::async, std::move(fill_and_give));
  else
    fill_and_give();
}

void Solver::wait() { deliver(false); }

}  // namespace aqhost
