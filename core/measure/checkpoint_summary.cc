#include "measure/checkpoint_summary.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "base/field.h"
#include "base/json.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

using Losses = std::map<std::pair<int32_t, int32_t>, double>;  // indexed by layer and expert

std::vector<LossShare> shares(const Losses& losses, double all) {
  std::vector<LossShare> result;
  for (const auto& [key, loss] : losses) result.push_back({key.first, key.second, loss / all});
  std::stable_sort(result.begin(), result.end(),
                   [](const LossShare& a, const LossShare& b) { return a.share > b.share; });
  return result;
}

void add_losses(const fs::path& file, const Model& model, CheckpointSummary& summary) {
  const Json report = read_json(file);
  const Field modules = Field(report, file.string())["modules"];
  if (!modules.json().is_object()) modules.mismatch("the modules of a report of aqhost");
  Losses layers, experts;
  double all = 0;
  for (const Module& module : model.modules()) {
    const Field entry = modules[module.name];
    if (entry.is_null() || entry["loss"].is_null()) continue;
    const double loss = entry["loss"].number();
    all += loss;
    if (module.key.layer < 0) continue;
    layers[{module.key.layer, -1}] += loss;
    if (module.key.expert >= 0) experts[{module.key.layer, module.key.expert}] += loss;
  }
  if (all <= 0) return;
  summary.layers = shares(layers, all);
  summary.experts = shares(experts, all);
}

}  // namespace

CheckpointSummary summarize(const Source& source, const Model& model) {
  CheckpointSummary summary;
  const StoredSize size = source.stored_size();
  summary.bytes = size.bytes;
  summary.bits_per_weight = size.bits_per_weight();
  const fs::path report = fs::path(source.directory()) / "quantization_report.json";
  if (fs::exists(report)) add_losses(report, model, summary);
  return summary;
}

}  // namespace aqhost
