#include "run/report.h"

#include <algorithm>
#include <set>

#include "base/memory.h"

namespace aqhost {
void Report::add(const PlannedModule& planned, const ModuleResult& result) {
  const Module& module = *planned.module;
  Json entry{{"format", planned.recipe.wq},
             {"group_size", planned.format->desc().group_size},
             {"bits_per_weight",
              static_cast<double>(planned.stored_bits()) / static_cast<double>(planned.weights())},
             {"activations", planned.recipe.aq},
             {"algorithm", result.rtn ? "rtn" : "gptq"},
             {"out_features", module.out_features},
             {"in_features", module.in_features}};
  if (result.rtn && planned.recipe.algorithm == "gptq")
    entry["note"] = "the Hessian could not be factored, rounded to nearest instead";
  if (result.calibrated) {
    entry["loss"] = result.loss;
    entry["rtn_loss"] = result.rtn_loss;
    entry["tokens"] = result.tokens;
    entry["weight"] = result.weight;
    if (result.starved) {
      entry["starved"] = true;
      starved_.emplace_back(module.key.layer, module.key.expert);
    }
    loss_ += result.loss;
    rtn_loss_ += result.rtn_loss;
  }
  modules_[module.name] = std::move(entry);
}

void Report::add(const std::vector<ExpertCoverage>& coverage) {
  for (const ExpertCoverage& c : coverage)
    experts_.push_back(
        {{"layer", c.layer}, {"expert", c.expert}, {"tokens", c.tokens}, {"weight", c.weight}});
}

void Report::add(const Refinement& refinement) {
  refined_.push_back({{"layer", refinement.layer},
                      {"error_before", refinement.error_before},
                      {"error_after", refinement.error_after}});
}

Json Report::finish(const Plan& plan, const Model& model, const PhaseTimer& timer) const {
  Json experts = experts_;
  const std::set<std::pair<int32_t, int32_t>> starved(starved_.begin(), starved_.end());
  for (Json& e : experts) {
    const int32_t layer = e["layer"];
    e["starved"] = starved.contains({layer, e["expert"].get<int32_t>()});
    e["needed"] = plan.settings.min_tokens.value_or(
        std::max(model.desc().hidden_size, model.ffn(layer).inner_size) / 2);
  }
  Json seconds = Json::object();
  double total = 0;
  for (const auto& [phase, value] : timer.seconds()) {
    seconds[phase] = value;
    total += value;
  }
  seconds["total"] = total;
  Json report{{"generator", "aqhost"},
              {"model_type", model.id()},
              {"modules", modules_},
              {"experts", experts},
              {"totals",
               {{"modules", modules_.size()},
                {"weights", plan.quantized_weights()},
                {"bits_per_weight", plan.bits_per_weight()},
                {"loss", loss_},
                {"rtn_loss", rtn_loss_},
                {"starved_experts", starved.size()},
                {"seconds", seconds},
                {"peak_memory_bytes", peak_memory_bytes()}}}};
  if (!refined_.empty()) report["refined"] = refined_;
  return report;
}

}  // namespace aqhost
