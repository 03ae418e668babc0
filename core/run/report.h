#pragma once

#include <utility>
#include <vector>

#include "base/json.h"
#include "plan/plan.h"
#include "run/layer_quantizer.h"
#include "run/phase_timer.h"
#include "run/refine.h"

namespace aqhost {

/// Collects what quantization_report.json says:
///   modules  name -> {format, group_size, bits_per_weight, algorithm, loss, rtn_loss, tokens, ...}
///   experts  [{layer, expert, tokens, weight, needed, starved}]
///   refined  [{layer, error_before, error_after}], where a recipe asks for it
///   totals   {modules, weights, bits_per_weight, loss, rtn_loss, seconds{phase},
///             peak_memory_bytes, bytes}
///   files    every file of the export, which a later run with --overwrite may replace
/// `bytes` (of all tensors), seconds.write and `files` are added when the export is finished.
class Report {
 public:
  void add(const PlannedModule& planned, const ModuleResult& result);
  void add(const std::vector<ExpertCoverage>& coverage);
  void add(const Refinement& refinement);
  double loss() const { return loss_; }

  Json finish(const Plan& plan, const Model& model, const PhaseTimer& timer) const;

 private:
  Json modules_ = Json::object();
  Json experts_ = Json::array(), refined_ = Json::array();
  std::vector<std::pair<int32_t, int32_t>> starved_;  // (layer, expert)
  double loss_ = 0, rtn_loss_ = 0;
};

}  // namespace aqhost
