#include "run/unit_sink.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <map>

namespace aqhost {
namespace {

ModuleReport report_of(const Solution& solution) {
  const PlannedModule& planned = *solution.planned;
  const Module& module = *planned.module;
  ModuleReport report;
  report.layer = module.key.layer;
  report.expert = std::max(module.key.expert, int32_t{AQ_EXPERT_NONE});
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

/// The work of each unit. Learned rounding takes several times as long as the rest of a layer, and
/// rounding to nearest takes no time to solve; formats differ less.
std::vector<UnitWork> work_by_unit(const Plan& plan, int32_t units) {
  std::vector<UnitWork> work(static_cast<std::size_t>(units));
  std::vector<std::map<std::string, int64_t>> weights(work.size());
  for (const PlannedModule& m : plan.modules) {
    if (!m.format) continue;
    const int32_t layer = m.module->key.layer;
    const auto unit = static_cast<std::size_t>(layer >= 0 ? layer : units - 1);
    work[unit].weights += static_cast<double>(m.weights());
    weights[unit][fmt::format("{}, refine {}", m.recipe.algorithm, m.recipe.refine_steps)] +=
        m.weights();
  }
  for (std::size_t u = 0; u < work.size(); u++)
    for (const auto& [how, count] : weights[u]) work[u].how += fmt::format("{} {}; ", count, how);
  return work;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
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
      next_(finished.units),
      time_left_(work_by_unit(plan, exporter.units())) {
  for (const auto& [name, module] : finished_.modules)
    done_ += static_cast<double>(module.out_features * module.in_features);
  observer_.begin("quantizing", static_cast<double>(plan.quantized_weights()), "weights");
  observer_.resume(done_);
  timer_.on_begin([this](const std::string& phase) { tell_observer(phase); });
}

UnitSink::~UnitSink() {
  timer_.on_begin({});
  observer_.end();
}

void UnitSink::tell_observer(const std::string& phase) {
  const int32_t layers = exporter_.units() - 1;
  place_ = next_ < layers ? fmt::format("layer {} of {}, {}", next_ + 1, layers, phase)
                          : "after the layers, " + phase;
  if (const auto left = time_left_.seconds(now())) observer_.expect(*left);
  observer_.update(done_, place_);
}

void UnitSink::begin_unit() {
  unit_ = {};
  time_left_.begin(next_, now());
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
    std::string detail = place_ + "  " + name;
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
