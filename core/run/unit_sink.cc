#include "run/unit_sink.h"

#include <ATen/Parallel.h>

namespace aqhost {
namespace {

ModuleReport report_of(const Solution& solution) {
  const PlannedModule& planned = *solution.planned;
  const Module& module = *planned.module;
  ModuleReport report;
  report.format = planned.recipe.wq;
  report.activations = planned.recipe.aq;
  report.algorithm = solution.rtn ? "rtn" : "gptq";
  if (solution.rtn && planned.recipe.algorithm == "gptq")
    report.note = "the Hessian could not be factored, rounded to nearest instead";
  report.group_size = planned.format->desc().group_size;
  report.out_features = module.out_features;
  report.in_features = module.in_features;
  report.bits_per_weight =
      static_cast<double>(planned.stored_bits()) / static_cast<double>(planned.weights());
  if (solution.calibrated)
    report.solve = ModuleReport::Solve{solution.loss, solution.rtn_loss, solution.tokens,
                                       solution.weight, solution.starved};
  return report;
}

}  // namespace

UnitSink::UnitSink(Exporter& exporter, RunStore& store, Comm& comm, PhaseTimer& timer,
                   const Plan& plan, RunObserver& observer, Finished finished)
    : exporter_(exporter),
      store_(store),
      comm_(comm),
      timer_(timer),
      observer_(observer),
      finished_(std::move(finished.report)),
      next_(finished.units) {
  for (const auto& [name, module] : finished_.modules)
    done_ += static_cast<double>(module.out_features * module.in_features);
  observer_.begin("quantizing", static_cast<double>(plan.quantized_weights()), "weights");
}

UnitSink::~UnitSink() { observer_.end(); }

void UnitSink::say(const std::string& what) { observer_.update(done_, what); }

void UnitSink::begin_unit() {
  unit_ = {};
  if (!before_) before_ = timer_.seconds();
  if (comm_.rank() == 0) exporter_.begin(next_, comm_.size() > 1);
  // rank 0 decides for all, and the others wait until it has created the shards
  at::Tensor keeps = at::tensor({store_.should_store_states() ? 1 : 0}, at::kLong);
  comm_.broadcast(keeps, 0);
  keeps_states_ = keeps.item<int64_t>() != 0;
  if (comm_.rank() != 0) exporter_.join(next_);
}

void UnitSink::take(const std::vector<Solution>& solutions) {
  at::parallel_for(0, static_cast<int64_t>(solutions.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const Solution& solution = solutions[static_cast<std::size_t>(i)];
      exporter_.write(*solution.planned, solution.matrix, solution.input_global);
    }
  });
  for (const Solution& solution : solutions) {
    const std::string& name = solution.planned->module->name;
    unit_.modules[name] = report_of(solution);
    done_ += static_cast<double>(solution.planned->weights() * comm_.size());
    std::string detail = name;
    if (solution.calibrated) detail += fmt::format("  loss {:.4g}", solution.loss);
    observer_.update(done_, detail);
  }
}

void UnitSink::add(const std::vector<ExpertCoverage>& coverage, int64_t needed,
                   const std::set<int32_t>& starved) {
  if (comm_.rank() != 0) return;
  for (const ExpertCoverage& c : coverage)
    unit_.experts.push_back(
        {c.layer, c.expert, c.tokens, c.weight, starved.contains(c.expert), needed});
}

void UnitSink::add(const Refinement& refinement) {
  if (comm_.rank() == 0) unit_.refined.push_back(refinement);
}

void UnitSink::finish_unit(const BoundaryStates& states) {
  timer_.begin("write");
  if (comm_.rank() == 0) unit_.layers.push_back({next_, difference(timer_.seconds(), *before_)});
  before_ = timer_.seconds();
  store_.finish(next_, unit_, timer_.seconds(), states, keeps_states_);
  timer_.end();
  finished_.append(std::exchange(unit_, {}));
  next_++;
}

}  // namespace aqhost
