#include "run/refine.h"

#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>

#include "base/interrupt.h"
#include "calibrate/windows.h"
#include "forward/batches.h"
#include "quant/cells.h"
#include "tensor/device.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// A module whose codes are being chosen. Its owner is the rank that has solved it.
struct Refined {
  const PlannedModule* planned;
  int owner;
  Solution* solution;            // null on other ranks than the owner, and so is `cells`
  std::unique_ptr<Cells> cells;  // with the weights that each step moves
  at::Tensor own_weight;         // the layer's own tensor, which it uses again in the end
};

bool is_refined(const PlannedModule& m) { return m.refined() && Cells::possible(m.format->desc()); }

/// The modules of a layer whose codes are to be chosen, in the order of the plan, the same on every
/// rank. Modules that were rounded to nearest because they could not be solved are left out.
std::vector<Refined> find_refined(const Plan& plan, int32_t index, const Layer& layer,
                                  std::vector<Solution>& solutions, Comm& comm) {
  std::map<const PlannedModule*, Solution*> solved;
  for (Solution& solution : solutions)
    if (!solution.rtn) solved[solution.planned] = &solution;
  std::vector<Refined> modules;
  for (const PlannedModule& m : plan.modules) {
    if (m.module->key.layer != index || !is_refined(m)) continue;
    const auto found = solved.find(&m);
    modules.push_back({&m, -1, found == solved.end() ? nullptr : found->second, nullptr,
                       layer.weight(*m.module)});
  }
  // only the owner knows how it has solved a module
  at::Tensor owners = at::zeros({static_cast<int64_t>(modules.size())}, at::kLong);
  for (std::size_t i = 0; i < modules.size(); i++)
    if (modules[i].solution != nullptr) owners[static_cast<int64_t>(i)] = comm.rank() + 1;
  comm.sum(owners);
  for (std::size_t i = 0; i < modules.size(); i++)
    modules[i].owner = owners[static_cast<int64_t>(i)].item<int>() - 1;
  std::erase_if(modules, [](const Refined& m) { return m.owner < 0; });
  return modules;
}

std::vector<int> owners_of(const std::vector<Refined>& refined) {
  std::vector<int> owners;
  for (const Refined& m : refined) owners.push_back(m.owner);
  return owners;
}

/// The tensors that of_owner(m) returns for each module m on its owner, in the shape and type of
/// the module's weight, on every rank.
template <typename OfOwner>
std::vector<at::Tensor> shared(const std::vector<Refined>& refined, Comm& comm, OfOwner of_owner) {
  std::vector<at::Tensor> tensors;
  for (const Refined& m : refined)
    tensors.push_back(m.cells ? of_owner(m)
                              : at::empty(m.own_weight.sizes(), m.own_weight.options()));
  comm.share(tensors, owners_of(refined));
  return tensors;
}

/// Calls body(begin, output) with the layer's output for every batch of x.
template <typename Body>
void run_layer(const Layer& layer, const at::Tensor& x, Body body) {
  for_window_batches(x, [&](int64_t begin, int64_t count) {
    body(begin, layer.forward(moved_to(x.narrow(0, begin, count), layer.options().device())));
  });
}

/// The mean squared error of the layer's output over the windows of all ranks.
double output_error(const Layer& layer, const at::Tensor& x, const at::Tensor& target, Comm& comm) {
  double sum = 0;
  run_layer(layer, x, [&](int64_t begin, const at::Tensor& out) {
    const at::Tensor d = out - moved_to(target.narrow(0, begin, out.size(0)), out.device());
    sum += d.square().sum(at::kDouble).item<double>();
  });
  at::Tensor totals = at::tensor({sum, static_cast<double>(x.numel())}, at::kDouble);
  comm.sum(totals);
  return totals[0].item<double>() / totals[1].item<double>();
}

/// Chooses the windows of each step.
class StepWindows {
 public:
  StepWindows(int64_t own, const RefineOptions& options, Comm& comm)
      : own_(own),
        ranks_(comm.size()),
        rank_(comm.rank()),
        random_(options.seed + (static_cast<uint64_t>(comm.rank()) << 32)) {
    at::Tensor total = at::tensor({own}, at::kLong);
    comm.sum(total);
    total_ = total.item<int64_t>();
    batch_ = std::min(options.batch, total_);
  }

  /// The number of windows of every step, of all ranks together.
  int64_t batch() const { return batch_; }

  /// Chooses windows of this rank for a step. The steps go round the windows of all ranks, which
  /// were dealt in turn, `batch` by `batch`. This says how many windows each rank has in a step: so
  /// they are always `batch` together, and all ranks have about as much to do. Which of its windows
  /// a rank takes is random.
  std::vector<int64_t> choose(int64_t step) {
    int64_t count = 0;
    for (int64_t i = 0; i < batch_; i++)
      if ((step * batch_ + i) % total_ % ranks_ == rank_) count++;
    return sample(own_, count, random_);
  }

 private:
  const int64_t own_, ranks_, rank_;
  int64_t total_ = 0, batch_ = 0;
  std::mt19937_64 random_;
};

/// The gradients of `part` times the mean squared error of the layer's output on `windows` of x.
/// The gradient of a weight on which the output does not depend is 0.
std::vector<at::Tensor> gradients_of(Layer& layer, const std::vector<Refined>& refined,
                                     const std::vector<at::Tensor>& weights, const at::Tensor& x,
                                     const at::Tensor& target, const std::vector<int64_t>& windows,
                                     double part) {
  for (std::size_t i = 0; i < refined.size(); i++)
    layer.use_weight(*refined[i].planned->module, weights[i]);
  if (!windows.empty()) {
    const c10::AutoGradMode gradients(true);  // the program has switched them off
    for (const at::Tensor& weight : weights) weight.requires_grad_();
    const at::Tensor rows = at::tensor(windows, at::kLong).to(x.device());
    const at::Device device = layer.options().device();
    const at::Tensor out = layer.forward(moved_to(x.index_select(0, rows), device));
    const at::Tensor wanted = moved_to(target.index_select(0, rows), device);
    if (out.requires_grad())  // it depends on one of the modules
      (out - wanted).square().mean().mul(part).backward();
  }
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& weight : weights)
    gradients.push_back(weight.grad().defined() ? weight.grad().contiguous()
                                                : at::zeros_like(weight));
  return gradients;
}

/// Moves the weights in their cells. A module whose output does not depend on the windows of a
/// step, such as an expert without tokens, does not change in that step.
void run_steps(Layer& layer, std::vector<Refined>& refined, const at::Tensor& x,
               const at::Tensor& target, const RefineOptions& options, Comm& comm) {
  const std::vector<int> owners = owners_of(refined);
  StepWindows windows(x.size(0), options, comm);
  for (int64_t step = 0; step < options.steps; step++) {
    check_interrupt();
    const std::vector<at::Tensor> weights =
        shared(refined, comm, [](const Refined& m) { return m.cells->weights(); });
    const std::vector<int64_t> own = windows.choose(step);
    std::vector<at::Tensor> gradients =
        gradients_of(layer, refined, weights, x, target, own,
                     static_cast<double>(own.size()) / static_cast<double>(windows.batch()));
    comm.reduce(gradients, owners);
    const double size = (1 - static_cast<double>(step) / static_cast<double>(options.steps)) /
                        static_cast<double>(options.steps);
    for (std::size_t i = 0; i < refined.size(); i++)
      if (refined[i].cells) refined[i].cells->move(gradients[i], size);
  }
}

/// The values of the current codes.
at::Tensor rounded_values(const Refined& m) {
  QuantizedMatrix matrix = m.solution->matrix;
  m.cells->store(matrix);
  return at::tensor(m.planned->format->dequantize(matrix))
      .view_as(m.own_weight)
      .to(m.own_weight.options());
}

}  // namespace

RefineOptions refine_options(const Plan& plan, int32_t layer, uint64_t seed) {
  RefineOptions options;
  options.seed = seed + static_cast<uint64_t>(layer);
  for (const PlannedModule& m : plan.modules) {
    if (m.module->key.layer != layer || !is_refined(m) || m.recipe.refine_steps <= options.steps)
      continue;
    options.steps = m.recipe.refine_steps;
    options.batch = m.recipe.refine_batch;
  }
  return options;
}

Refinement refine_layer(const Source& source, const Plan& plan, int32_t index, Layer& layer,
                        std::vector<Solution>& solutions, at::Tensor& x, const at::Tensor& target,
                        const RefineOptions& options, Comm& comm) {
  comm.station(fmt::format("layer {}: refine", index));
  Refinement refinement{index, output_error(layer, x, target, comm), 0};
  std::vector<Refined> refined = find_refined(plan, index, layer, solutions, comm);
  for (Refined& m : refined) {
    if (m.solution == nullptr) continue;
    const Module& module = *m.planned->module;
    const at::Tensor original =
        read_tensor(source, module.weight, {module.out_features, module.in_features});
    m.cells = std::make_unique<Cells>(m.planned->format->desc(), original, m.solution->matrix,
                                      layer.options().device());
  }
  run_steps(layer, refined, x, target, options, comm);

  const std::vector<at::Tensor> values = shared(refined, comm, rounded_values);
  for (std::size_t i = 0; i < refined.size(); i++)
    layer.use_weight(*refined[i].planned->module, values[i]);
  refinement.error_after = output_error(layer, x, target, comm);
  const bool better = refinement.error_after < refinement.error_before;
  for (std::size_t i = 0; i < refined.size(); i++) {
    Refined& m = refined[i];
    layer.use_weight(*m.planned->module, m.own_weight);
    if (!better) continue;
    m.own_weight.copy_(values[i]);
    if (m.cells) m.cells->store(m.solution->matrix);
  }
  if (!better) refinement.error_after = refinement.error_before;
  comm.station(fmt::format("layer {}: forward", index));
  run_layer(layer, x, [&](int64_t begin, const at::Tensor& out) {
    x.narrow(0, begin, out.size(0)).copy_(moved_to(out, x.device()));
  });
  return refinement;
}

}  // namespace aqhost
