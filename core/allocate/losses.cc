#include "allocate/losses.h"

#include <memory>

#include "forward/batches.h"
#include "forward/embedding_and_head.h"
#include "run/calibrated_run.h"
#include "run/layer_reader.h"
#include "run/layer_walk.h"
#include "tensor/device.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// Solves each task in the format of every candidate, and keeps only the losses.
class CandidateSolver : public TaskSolver {
 public:
  /// The arguments are borrowed.
  CandidateSolver(const RunSettings& settings, const std::vector<Plan>& candidates, Comm& comm,
                  PhaseTimer& timer, CandidateLosses& losses)
      : candidates_(candidates), losses_(losses) {
    for (std::size_t c = 0; c < candidates.size(); c++)
      solvers_.push_back(std::make_unique<Solver>(
          settings, comm, "losses",
          [this, c](const std::vector<Solution>& solutions) {
            for (const Solution& s : solutions) losses_.loss[c][s.planned->module->index] = s.loss;
          },
          timer));
  }

  std::vector<NewWeight> solve(SolveTask task) override {
    for (const SolveGroup& group : task.groups)
      for (const SolveGroup::Member& m : group.members)
        losses_.weight[m.planned->module->index] = group.hessian.weight();
    for (std::size_t c = 0; c < candidates_.size(); c++) {
      SolveTask own{{}, task.room};
      for (const SolveGroup& group : task.groups) {
        SolveGroup members{{}, group.hessian, group.starved};
        for (SolveGroup::Member m : group.members) {
          m.planned = &candidates_[c].modules[m.planned->module->index];
          if (m.planned->format) members.members.push_back(std::move(m));
        }
        if (!members.members.empty()) own.groups.push_back(std::move(members));
      }
      solvers_[c]->solve(std::move(own));
    }
    return {};
  }

  void wait() override {
    for (const auto& solver : solvers_) solver->wait();
  }

 private:
  const std::vector<Plan>& candidates_;
  CandidateLosses& losses_;
  std::vector<std::unique_ptr<Solver>> solvers_;
};

/// The task of lm_head, whose input is the normed output x of the last layer; without groups if the
/// plan leaves it alone.
SolveTask head_task(const Source& source, const Model& model, const Plan& plan, const at::Tensor& x,
                    at::Device device) {
  SolveTask task;
  for (const PlannedModule& planned : plan.modules) {
    if (!planned.format || planned.module->key.role != AQ_ROLE_LM_HEAD) continue;
    const Module& module = *planned.module;
    const at::TensorOptions options = at::TensorOptions(device).dtype(at::kFloat);
    const OutputHead head(source, model, options);
    Hessian hessian(module.in_features, device);
    for_window_batches(x, [&](int64_t begin, int64_t count) {
      hessian.add(head.final_norm(moved_to(x.narrow(0, begin, count), device)).flatten(0, 1), {});
    });
    const at::Tensor weight =
        read_tensor(source, module.weight, {module.out_features, module.in_features}, options);
    task.groups.push_back({{{&planned, weight, 1}}, std::move(hessian), false});
  }
  return task;
}

}  // namespace

CandidateLosses measure_losses(const Source& source, const Model& model, const Plan& plan,
                               const std::vector<Plan>& candidates, const at::Tensor& windows,
                               const at::TensorOptions& options, RunObserver& observer) {
  Plan walked = plan;
  walked.settings.error_feedback = 0;
  walked.settings.sequential = true;
  for (PlannedModule& m : walked.modules) m.recipe.refine_steps = 0;
  CandidateLosses losses;
  losses.loss.assign(candidates.size(), std::vector<double>(plan.modules.size(), 0));
  losses.weight.assign(plan.modules.size(), 0);
  const std::unique_ptr<Comm> alone = Comm::alone();
  CalibratedRunOptions run;
  run.device = options.device();
  run.comm = alone.get();
  set_memory(run, source, model, walked, windows, {});
  const int32_t layers = model.desc().n_layers;
  at::Tensor original,
      x = run.states.empty({windows.size(0), windows.size(1), model.desc().hidden_size});
  embed_tokens_into(source, model, windows, x);
  LayerReader reader(run.device, layers,
                     [&](int32_t l) { return Layer(source, model, l, windows.size(1), options); });
  PhaseTimer timer;
  observer.begin("measuring losses", layers, "layers");
  for (int32_t l = 0; l < layers; l++) {
    observer.update(l, fmt::format("layer {}", l));
    Layer& layer = reader.next();
    LayerWalk(walked, l, layer, run.chunk_bytes, run.room.layer, *alone,
              std::make_unique<CandidateSolver>(walked.settings, candidates, *alone, timer, losses),
              timer)
        .run(x, original);
  }
  CandidateSolver solver(walked.settings, candidates, *alone, timer, losses);
  solver.solve(head_task(source, model, walked, x, run.device));
  solver.wait();
  observer.end();
  source.check_unchanged();
  return losses;
}

}  // namespace aqhost
