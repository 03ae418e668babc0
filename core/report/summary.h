#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "report/report.h"

namespace aqhost {

/// "model.layers.*.mlp.experts.*.up_proj": the name of a module with each number as *.
std::string name_without_numbers(const std::string& module);
/// "mlp.experts.*.up_proj": the same without what all layers have in common.
std::string part_of(const std::string& module);
/// "int4 g128", "nvfp4 row": the format of a module and its groups.
std::string format_of(const ModuleReport& module);

/// Modules that are looked at together.
struct ModuleSum {
  int64_t modules = 0, weights = 0;
  double bits = 0;                         // stored, with scales
  double loss = 0, rtn_loss = 0;           // of those that were solved under a Hessian
  std::map<std::string, int64_t> formats;  // -> weights

  void add(const ModuleReport& module);
  double bits_per_weight() const { return bits / static_cast<double>(weights); }
  /// The loss divided by that of rounding to nearest; negative if none was computed.
  double relative_loss() const { return rtn_loss > 0 ? loss / rtn_loss : -1; }
  /// The format of most of the weights.
  std::string main_format() const;
};

/// The figures of a report that its page shows.
struct ReportSummary {
  int32_t layers = 0;   // the number of layers up to the last that the report mentions
  int32_t experts = 0;  // the number of experts of the layer that has most
  ModuleSum all;
  std::map<std::string, ModuleSum> formats;              // by format_of()
  std::vector<std::pair<std::string, ModuleSum>> parts;  // by part_of(), in the model's order
  std::vector<ModuleSum> by_layer;                       // [layers]
  std::map<std::pair<std::string, int32_t>, ModuleSum> by_part_and_layer;
  std::map<std::pair<int32_t, int32_t>, ModuleSum> by_expert;  // by layer and expert
  ModuleSum starved, other_experts;  // the modules of starved experts, and of all others
};
ReportSummary summarize(const RunReport& report);

/// The modules with the largest losses, of those that have one, at most `count`.
std::vector<std::pair<std::string, const ModuleReport*>> worst_modules(const UnitReport& report,
                                                                       std::size_t count);

}  // namespace aqhost
