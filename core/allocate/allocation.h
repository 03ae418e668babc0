#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "allocate/candidates.h"
#include "allocate/choose.h"
#include "allocate/parts.h"
#include "allocate/scores.h"
#include "checkpoint/source.h"
#include "plan/plan.h"
#include "plugin/model.h"
#include "plugin/registry.h"

namespace aqhost {

/// What counts as a bit of a part.
enum class BitCost : uint8_t {
  kStored,  // every bit that is stored
  kActive,  // the bits that are read for one token: those of routed experts times the share of
            // experts that a token is sent to
};

struct AllocationOptions {
  std::vector<Candidate> candidates;
  std::string recipe;  // the file of the recipe that says all but the formats; "": none
  std::string target = "any";
  BitCost cost = BitCost::kStored;
};

/// The formats that the parts of a model may get, what they take, and what was chosen.
class Allocation {
 public:
  struct Part : AllocatedGroup {
    int64_t weights = 0;               // by the cost, see BitCost
    std::vector<Choice> choices;       // of each candidate
    std::vector<bool> allowed;         // [candidate]
    std::vector<std::string> becomes;  // [candidate]: "int4 g64", or "dense"
    std::size_t chosen = 0;            // a candidate

    double bits(std::size_t candidate) const {
      return static_cast<double>(choices[candidate].bits) / static_cast<double>(weights);
    }
  };

  /// Makes the plan of each candidate, and asks the engine of `options.target` which parts it loads
  /// in which of them. The arguments, without the options, must outlive this object. Throws an
  /// Error if a candidate is impossible for a module, if the recipe quantizes a router, or if the
  /// engine loads a part in none of the candidates.
  Allocation(const Source& source, const Model& model, const Registry& registry,
             AllocationOptions options);

  /// A plan that quantizes every module of a part, and the plans with each candidate for all parts.
  const Plan& plan() const { return plan_; }
  const std::vector<Plan>& plans() const { return plans_; }
  const std::vector<Part>& parts() const { return parts_; }
  const std::vector<Candidate>& candidates() const { return options_.candidates; }

  /// Throws an Error that names the least possible number of bits per weight if that is more.
  void check_budget(double bits) const;
  void set_scores(const Scores& scores);
  /// Chooses the formats with the least sum of scores whose bits per weight are at most `bits`.
  /// Throws the Error of check_budget().
  void choose(double bits);

  /// The bits per weight and the sum of scores of what was chosen, or of one candidate for all
  /// parts; see uniform() below.
  double bits() const;
  double score() const;
  /// Whether every part may become this candidate.
  bool is_possible(std::size_t candidate) const;
  double bits_of(std::size_t candidate) const;
  double score_of(std::size_t candidate) const;

  /// The recipe of what was chosen, in YAML. A row has the patterns of parts that belong together,
  /// and a comment with their layers, bits and score. `comment` comes first. Throws an Error if the
  /// engine does not load all of it together, although it loads each part.
  std::string recipe(const std::string& comment) const;

 private:
  void make_plans();
  Plan plan_of(std::vector<BaseRecipe::Row> rows, const std::string& file) const;
  void add_part(const AllocatedGroup& part);
  void find_allowed(const Engine& engine);
  std::string problem_of_mixture(const Engine& engine, std::size_t without);
  void check_mixture(const Engine& engine);
  std::string problem_in(const Plan& plan, const Engine& engine) const;
  int64_t counted(const Module& module, int64_t number) const;
  double weights() const;
  int64_t budget_of(double bits) const;
  std::vector<BaseRecipe::Row> skipped_rows(const Recipe& recipe) const;
  std::vector<BaseRecipe::Row> chosen_rows() const;
  void add_rows(const std::vector<const Part*>& alike, std::vector<BaseRecipe::Row>& rows) const;

  const Source& source_;
  const Model& model_;
  const Registry& registry_;
  const AllocationOptions options_;
  BaseRecipe base_;
  Plan given_;  // that of options_.recipe
  std::vector<BaseRecipe::Row> skipped_;
  std::vector<std::string> names_;  // of all modules
  Plan plan_;
  std::vector<Plan> plans_;
  std::vector<Part> parts_;
};

}  // namespace aqhost
