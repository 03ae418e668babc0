#include "allocate/allocation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "base/error.h"
#include "plan/loadable.h"

namespace aqhost {
namespace {

using RecipeRows = std::vector<BaseRecipe::Row>;

/// "layer 3", "layers 0-2, 5", or "" for what is in no layer.
std::string layers_text(const std::set<int32_t>& layers) {
  if (layers.contains(-1)) return "";
  std::string text;
  for (auto it = layers.begin(); it != layers.end();) {
    const int32_t first = *it;
    int32_t last = first;
    while (++it != layers.end() && *it == last + 1) last = *it;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", first);
    if (last > first) text += fmt::format("-{}", last);
  }
  return fmt::format("layer{} {}", layers.size() == 1 ? "" : "s", text);
}

/// What decides whether an engine loads a part.
using PartKind = std::set<std::tuple<int32_t, bool, int64_t, int64_t>>;

PartKind kind_of(const AllocatedGroup& part, const Plan& plan) {
  PartKind kind;
  for (const std::size_t i : part.modules) {
    const Module& m = *plan.modules[i].module;
    kind.insert({m.key.role, m.key.expert >= 0, m.out_features, m.in_features});
  }
  return kind;
}

/// The plan with all modules of other parts left as they are.
Plan only(const AllocatedGroup& part, const Plan& plan) {
  Plan result = plan;
  std::size_t next = 0;
  for (std::size_t i = 0; i < result.modules.size(); i++) {
    if (next < part.modules.size() && part.modules[next] == i)
      next++;
    else
      result.modules[i].format = nullptr;
  }
  return result;
}

}  // namespace

Allocation::Allocation(const Source& source, const Model& model, const Registry& registry,
                       AllocationOptions options)
    : source_(source), model_(model), registry_(registry), options_(std::move(options)) {
  Recipe recipe;
  if (!options_.recipe.empty()) {
    recipe = Recipe::load(options_.recipe);
    base_ = BaseRecipe(options_.recipe);
  }
  given_ = make_plan(model, recipe, registry, "");
  for (const Module& module : model.modules()) names_.push_back(module.name);
  for (const PlannedModule& m : given_.modules)
    if (m.format && m.module->key.role == AQ_ROLE_ROUTER)
      fail(
          "{}: the recipe quantizes this router; the choice of experts has no gradient, so what it "
          "may cost cannot be measured: skip routers",
          m.module->name);
  skipped_ = skipped_rows(recipe);
  make_plans();
  const Engine* engine = find_engine(options_.target);
  for (const AllocatedGroup& part : model_parts(plan_, engine)) add_part(part);
  if (engine == nullptr) return;
  find_allowed(*engine);
  check_mixture(*engine);
}

/// Rows for the modules that would be quantized without what the base recipe no longer says.
RecipeRows Allocation::skipped_rows(const Recipe& recipe) const {
  std::vector<std::string> names;
  for (const PlannedModule& m : given_.modules)
    if (!m.format && (m.module->quantize || recipe.resolve(m.module->name).named))
      names.push_back(m.module->name);
  RecipeRows rows;
  for (const std::string& pattern : patterns_for(names, names_, true))
    rows.push_back({pattern, {{"skip", true}}, ""});
  return rows;
}

/// Makes the plan of each candidate, and plan_.
void Allocation::make_plans() {
  const Candidate* first = nullptr;
  for (const Candidate& candidate : options_.candidates)
    if (first == nullptr && !candidate.dense()) first = &candidate;
  if (first == nullptr) throw UsageError("--candidates: there is no format to quantize to");
  const auto plan_with = [&](const Candidate& candidate) {
    RecipeRows rows{{"*", candidate.keys, ""}};
    for (const PlannedModule& m : given_.modules)
      if (m.format && !m.module->quantize) rows.push_back({m.module->name, candidate.keys, ""});
    return plan_of(std::move(rows), "--candidates " + candidate.text);
  };
  plan_ = plan_with(*first);
  for (const Candidate& candidate : options_.candidates) {
    if (!candidate.dense()) {
      plans_.push_back(plan_with(candidate));
      continue;
    }
    plans_.push_back(plan_);
    for (PlannedModule& m : plans_.back().modules) m.format = nullptr;
  }
}

Plan Allocation::plan_of(RecipeRows rows, const std::string& file) const {
  rows.insert(rows.end(), skipped_.begin(), skipped_.end());
  return make_plan(model_, Recipe::parse(base_.with(rows), file), registry_, "");
}

/// `number` of bits or weights of a module, as far as they are counted.
int64_t Allocation::counted(const Module& module, int64_t number) const {
  if (options_.cost == BitCost::kStored || module.key.expert < 0) return number;
  const FfnDesc& ffn = model_.ffn(module.key.layer);
  return number * ffn.top_k / ffn.n_experts;
}

void Allocation::add_part(const AllocatedGroup& part) {
  Part& added = parts_.emplace_back();
  static_cast<AllocatedGroup&>(added) = part;
  for (const std::size_t i : part.modules)
    added.weights += counted(*plan_.modules[i].module, plan_.modules[i].weights());
  for (const Plan& plan : plans_) {
    Choice choice;
    for (const std::size_t i : part.modules) {
      const PlannedModule& m = plan.modules[i];
      const TensorInfo& stored = *source_.find(m.module->weight.name);
      const int64_t bits = m.format ? m.stored_bits() : 8 * m.weights() * dtype_size(stored.dtype);
      choice.bits += counted(*m.module, bits);
    }
    added.choices.push_back(choice);
    added.becomes.push_back(plan.modules[part.modules.front()].format
                                ? describe(plan.modules[part.modules.front()])
                                : "dense");
  }
  added.allowed.assign(plans_.size(), true);
}

/// What prevents the engine from loading an export of the plan; "" if nothing does.
std::string Allocation::problem_in(const Plan& plan, const Engine& engine) const {
  for (const Loadable& l : loadable(plan, model_, source_))
    if (l.id == engine.id && !l.loads())
      return fmt::format("{}: {}", l.verdict(), l.problems().front());
  return "";
}

void Allocation::find_allowed(const Engine& engine) {
  std::map<PartKind, std::vector<std::string>> problems;  // [candidate]
  for (std::size_t c = 0; c < plans_.size(); c++) {
    if (options_.candidates[c].dense()) continue;
    const bool all = problem_in(plans_[c], engine).empty();
    for (Part& part : parts_) {
      if (all) continue;
      std::vector<std::string>& known = problems[kind_of(part, plan_)];
      if (known.empty()) known.assign(plans_.size(), "?");
      if (known[c] == "?") known[c] = problem_in(only(part, plans_[c]), engine);
      part.allowed[c] = known[c].empty();
    }
  }
  for (const Part& part : parts_) {
    if (std::find(part.allowed.begin(), part.allowed.end(), true) != part.allowed.end()) continue;
    const std::vector<std::string>& known = problems[kind_of(part, plan_)];
    fail("{} may have none of the candidates: {}", plan_.modules[part.modules.front()].module->name,
         known.front());
  }
}

/// What prevents the engine from loading parts that have the candidates in turn, all but `without`;
/// "" if nothing does.
std::string Allocation::problem_of_mixture(const Engine& engine, std::size_t without) {
  const std::size_t n = plans_.size();
  std::size_t last = n - 1;
  for (Part& part : parts_) {
    std::size_t step = 1;
    const auto may_have = [&](std::size_t c) { return part.allowed[c] && c != without; };
    while (step <= n && !may_have((last + step) % n)) step++;
    if (step > n) return "a part may have no other candidate";
    last = part.chosen = (last + step) % n;
  }
  return problem_in(plan_of(chosen_rows(), "--candidates"), engine);
}

/// Throws an Error if the engine loads each part in its candidates, but not parts in different
/// ones.
void Allocation::check_mixture(const Engine& engine) {
  const std::string problem = problem_of_mixture(engine, plans_.size());
  if (problem.empty()) return;
  for (std::size_t c = 0; plans_.size() > 2 && c < plans_.size(); c++)
    if (problem_of_mixture(engine, c).empty())
      fail("the candidate {} cannot be mixed with the others; leave it out of --candidates: {}",
           options_.candidates[c].text, problem);
  fail("there is nothing to allocate, because parts of this model cannot differ: {}", problem);
}

void Allocation::set_scores(const Scores& scores) {
  for (Part& part : parts_)
    for (std::size_t c = 0; c < part.choices.size(); c++) {
      part.choices[c].loss = 0;
      for (const std::size_t i : part.modules) part.choices[c].loss += scores[c][i];
      if (!std::isfinite(part.choices[c].loss))
        fail("{}: its loss in {} is not finite", plan_.modules[part.modules.front()].module->name,
             part.becomes[c]);
    }
}

double Allocation::weights() const {
  double sum = 0;
  for (const Part& part : parts_) sum += static_cast<double>(part.weights);
  return sum;
}

/// What the parts may take in all.
int64_t Allocation::budget_of(double bits) const {
  return static_cast<int64_t>(std::floor(bits * weights() * (1 + 1e-12)));
}

void Allocation::check_budget(double bits) const {
  int64_t least = 0;
  for (const Part& part : parts_) {
    int64_t of_part = std::numeric_limits<int64_t>::max();
    for (std::size_t c = 0; c < part.choices.size(); c++)
      if (part.allowed[c]) of_part = std::min(of_part, part.choices[c].bits);
    least += of_part;
  }
  if (least > budget_of(bits))
    fail("--bits {:g}: the smallest candidates take {:.4f} bits per weight", bits,
         static_cast<double>(least) / weights());
}

void Allocation::choose(double bits) {
  check_budget(bits);
  std::vector<std::vector<Choice>> allowed;
  std::vector<std::vector<std::size_t>> candidate;  // of each allowed choice
  for (const Part& part : parts_) {
    auto& choices = allowed.emplace_back();
    auto& indices = candidate.emplace_back();
    for (std::size_t c = 0; c < part.choices.size(); c++) {
      if (!part.allowed[c]) continue;
      choices.push_back(part.choices[c]);
      indices.push_back(c);
    }
  }
  const std::vector<std::size_t> answer = aqhost::choose(allowed, budget_of(bits));
  for (std::size_t u = 0; u < parts_.size(); u++) parts_[u].chosen = candidate[u][answer[u]];
}

double Allocation::bits() const {
  double sum = 0;
  for (const Part& part : parts_) sum += static_cast<double>(part.choices[part.chosen].bits);
  return sum / weights();
}

double Allocation::score() const {
  double sum = 0;
  for (const Part& part : parts_) sum += part.choices[part.chosen].loss;
  return sum;
}

bool Allocation::is_possible(std::size_t candidate) const {
  return std::all_of(parts_.begin(), parts_.end(),
                     [&](const Part& part) { return part.allowed[candidate]; });
}

double Allocation::bits_of(std::size_t candidate) const {
  double sum = 0;
  for (const Part& part : parts_) sum += static_cast<double>(part.choices[candidate].bits);
  return sum / weights();
}

double Allocation::score_of(std::size_t candidate) const {
  double sum = 0;
  for (const Part& part : parts_) sum += part.choices[candidate].loss;
  return sum;
}

/// Rows for what was chosen, by the name of parts and the candidate.
RecipeRows Allocation::chosen_rows() const {
  std::vector<std::string> names;
  for (const Part& part : parts_)
    if (std::find(names.begin(), names.end(), part.name) == names.end()) names.push_back(part.name);
  RecipeRows rows;
  for (const std::string& name : names)
    for (std::size_t c = 0; c < plans_.size(); c++) {
      std::vector<const Part*> alike;
      for (const Part& part : parts_)
        if (part.name == name && part.chosen == c) alike.push_back(&part);
      if (!alike.empty()) add_rows(alike, rows);
    }
  return rows;
}

/// Adds the rows of parts that have one name and one candidate.
void Allocation::add_rows(const std::vector<const Part*>& alike, RecipeRows& rows) const {
  const Part& first = *alike.front();
  std::vector<std::string> modules;
  std::set<int32_t> layers;
  bool kept = false;
  double bits = 0, weights = 0, loss = 0;
  for (const Part* part : alike) {
    layers.insert(part->layer);
    bits += static_cast<double>(part->choices[part->chosen].bits);
    weights += static_cast<double>(part->weights);
    loss += part->choices[part->chosen].loss;
    for (const std::size_t i : part->modules) {
      modules.push_back(names_[i]);
      kept = kept || !plan_.modules[i].module->quantize;
    }
  }
  const std::string where = layers_text(layers);
  std::string comment = fmt::format("{}{}{}: {:.3f} bits, score {:.4g}", first.name,
                                    where.empty() ? "" : " of ", where, bits / weights, loss);
  const Candidate& candidate = options_.candidates[first.chosen];
  const Json keys = candidate.dense() ? Json{{"skip", true}} : candidate.keys;
  for (const std::string& pattern : patterns_for(modules, names_, kept))
    rows.push_back({pattern, keys, std::exchange(comment, "")});
}

std::string Allocation::recipe(const std::string& comment) const {
  RecipeRows rows = chosen_rows();
  const Plan plan = plan_of(rows, "the recipe");
  for (const Part& part : parts_)
    for (const std::size_t i : part.modules) {
      const PlannedModule& wanted = plans_[part.chosen].modules[i];
      if (describe(plan.modules[i]) != describe(wanted))
        fail("{}: the recipe gives it {} and not {}", names_[i], describe(plan.modules[i]),
             describe(wanted));
    }
  if (options_.target != "any") check_target(loadable(plan, model_, source_), options_.target);
  rows.insert(rows.begin(), skipped_.begin(), skipped_.end());
  return base_.with(rows, comment);
}

}  // namespace aqhost
