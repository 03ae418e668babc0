#include "allocate/candidate_walk.h"

#include <memory>
#include <utility>

#include "forward/batches.h"
#include "forward/embedding_and_head.h"
#include "run/calibrated_run.h"
#include "run/layer_reader.h"
#include "run/layer_walk.h"
#include "tensor/device.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

/// The groups with the formats of a candidate, without the members that it leaves as they are.
std::vector<SolveGroup> in_candidate(const std::vector<SolveGroup>& groups, const Plan& candidate) {
  std::vector<SolveGroup> result;
  for (const SolveGroup& group : groups) {
    SolveGroup& own = result.emplace_back(SolveGroup{{}, group.hessian, group.starved});
    for (SolveGroup::Member m : group.members) {
      m.planned = &candidate.modules[m.planned->module->index];
      if (m.planned->format) own.members.push_back(std::move(m));
    }
  }
  return result;
}

/// Solves each task in the format of every candidate, and leaves the layer as it is.
class CandidateSolver : public TaskSolver {
 public:
  /// The arguments are borrowed.
  CandidateSolver(const MeasureSetup& setup, const RunSettings& settings, std::string station,
                  const CandidateSink& sink, PhaseTimer& timer)
      : setup_(setup),
        station_(std::move(station)),
        sink_(sink),
        timer_(timer),
        alone_(Comm::alone()) {
    for (std::size_t c = 0; c < setup.candidates.size(); c++)
      solvers_.push_back(std::make_unique<Solver>(
          settings, *alone_, station_,
          [this, c](const std::vector<Solution>& solutions) {
            for (const Solution& s : solutions) sink_.solution(c, s);
          },
          timer));
  }

  std::vector<NewWeight> solve(SolveTask task) override {
    const DealtTask all = deal_task(std::move(task), station_, setup_.comm, timer_);
    for (std::size_t c = 0; c < solvers_.size(); c++) {
      const Plan& candidate = setup_.candidates[c];
      SolveTask own{in_candidate(all.own.groups, candidate), all.own.room};
      std::erase_if(own.groups, [](const SolveGroup& group) { return group.members.empty(); });
      const std::vector<NewWeight> solved = solvers_[c]->solve(std::move(own));
      if (!sink_.weight) continue;
      const DealtTask dealt{{}, in_candidate(all.groups, candidate), all.owners};
      for (const NewWeight& weight : share_weights(dealt, solved, station_, setup_.comm, timer_))
        sink_.weight(c, weight);
    }
    setup_.comm.station(station_ + ": forward");
    return {};
  }

  void wait() override {
    for (const auto& solver : solvers_) solver->wait();
  }

 private:
  const MeasureSetup& setup_;
  const std::string station_;
  const CandidateSink& sink_;
  PhaseTimer& timer_;
  const std::unique_ptr<Comm> alone_;
  std::vector<std::unique_ptr<Solver>> solvers_;
};

/// The task of lm_head, whose input is the normed output x of the last layer; without groups if the
/// plan leaves it alone.
SolveTask head_task(const MeasureSetup& setup, const at::Tensor& x) {
  SolveTask task;
  const at::TensorOptions options = setup.options.dtype(at::kFloat);
  for (const PlannedModule& planned : setup.plan.modules) {
    if (!planned.format || planned.module->key.role != AQ_ROLE_LM_HEAD) continue;
    const Module& module = *planned.module;
    const OutputHead head(setup.source, setup.model, options);
    Hessian hessian(module.in_features, options.device());
    for_window_batches(x, [&](int64_t begin, int64_t count) {
      const at::Tensor part = moved_to(x.narrow(0, begin, count), options.device());
      hessian.add(head.final_norm(part).flatten(0, 1), {});
    });
    const at::Tensor weight = read_tensor(setup.source, module.weight,
                                          {module.out_features, module.in_features}, options);
    task.groups.push_back({{{&planned, weight, 1}}, std::move(hessian), false});
  }
  return task;
}

}  // namespace

void walk_candidates(const MeasureSetup& setup, const at::Tensor& windows, int32_t first,
                     const CandidateSink& sink, const std::function<void(int32_t layer)>& done) {
  const int32_t layers = setup.model.desc().n_layers;
  if (first > layers) return;
  Plan plan = setup.plan;
  plan.settings.error_feedback = 0;
  plan.settings.sequential = true;
  for (PlannedModule& m : plan.modules) m.recipe.refine_steps = 0;
  CalibratedRunOptions run;
  run.dtype = setup.options.dtype().toScalarType();
  run.device = setup.options.device();
  run.comm = &setup.comm;
  set_memory(run, setup.source, setup.model, plan, windows, {});
  const at::Tensor ids = own_windows(plan, windows, setup.comm).ids;
  Plan unchanged = plan;  // for the layers that are only run
  for (PlannedModule& m : unchanged.modules) m.format = m.activations = nullptr;
  at::Tensor original,
      x = run.states.empty({ids.size(0), ids.size(1), setup.model.desc().hidden_size});
  embed_tokens_into(setup.source, setup.model, ids, x);
  LayerReader reader(run.device, layers, [&](int32_t l) {
    return Layer(setup.source, setup.model, l, windows.size(1), setup.options);
  });
  PhaseTimer timer;
  for (int32_t l = 0; l < layers; l++) {
    setup.observer.update(l, fmt::format("layer {}", l));
    LayerWalk(l < first ? unchanged : plan, l, reader.next(), run.chunk_bytes, run.room.layer,
              setup.comm,
              std::make_unique<CandidateSolver>(setup, plan.settings, fmt::format("layer {}", l),
                                                sink, timer),
              timer)
        .run(x, original);
    if (l >= first) done(l);
  }
  CandidateSolver solver(setup, plan.settings, "head", sink, timer);
  solver.solve(head_task(setup, x));
  solver.wait();
  done(layers);
  setup.source.check_unchanged();
}

}  // namespace aqhost
