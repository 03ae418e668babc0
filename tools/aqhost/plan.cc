#include "pipeline/plan.h"

#include <fmt/format.h>

#include <map>

#include "base/error.h"
#include "checkpoint/reader.h"
#include "command.h"
#include "pipeline/quantize.h"

namespace aqhost {
namespace {

void add_options(po::options_description_easy_init add) {
  add_model_options(add);
  add_plugin_option(add);
  add("config", po::value<std::string>(), "recipe in YAML or JSON; default: int4, group size 128");
}

struct Sizes {
  int64_t before = 0, after = 0;  // bytes of all tensors
};

Sizes sizes_of(const Reader& reader, const Plan& plan) {
  Sizes sizes;
  for (const TensorInfo& info : reader.tensors())
    sizes.before += info.numel() * dtype_size(info.dtype);
  sizes.after = sizes.before;
  for (const PlannedModule& m : plan.modules) {
    if (!m.format) continue;
    sizes.after -= m.weights() * dtype_size(reader.find(m.module->weight.name)->dtype);
    sizes.after += m.stored_bits() / 8;
  }
  return sizes;
}

std::string becomes(const PlannedModule& m) {
  if (!m.format) return "as it is";
  const int32_t group = m.format->desc().group_size;
  const std::string size = group < 0 ? "row" : group == 0 ? "matrix" : "g" + std::to_string(group);
  return fmt::format("{} {}{}", m.recipe.wq, size, m.recipe.algorithm == "rtn" ? " rtn" : "");
}

/// "model.layers.0.mlp.experts.3.up_proj" with each number as *.
std::string wildcard(const std::string& name) {
  std::string result;
  for (std::size_t i = 0; i < name.size();) {
    std::size_t end = i;
    while (end < name.size() && name[end] >= '0' && name[end] <= '9') end++;
    const bool component =
        end > i && (i == 0 || name[i - 1] == '.') && (end == name.size() || name[end] == '.');
    if (component) {
      result += '*';
      i = end;
    } else {
      result += name[i++];
    }
  }
  return result;
}

void print(const Plan& plan, const Sizes& sizes) {
  struct Row {
    int64_t modules = 0, weights = 0, bits = 0;
  };
  std::map<std::pair<std::string, std::string>, Row> rows;
  std::size_t width = 0;
  for (const PlannedModule& m : plan.modules) {
    const std::string name = wildcard(m.module->name);
    width = std::max(width, name.size());
    Row& row = rows[{name, becomes(m)}];
    row.modules++;
    row.weights += m.weights();
    row.bits += m.format ? m.stored_bits() : 0;
  }
  fmt::print("{:<{}}  {:<12}  {:>7}  {:>15}  {:>6}\n", "modules", width, "becomes", "number",
             "weights", "bits");
  for (const auto& [key, row] : rows)
    fmt::print("{:<{}}  {:<12}  {:>7}  {:>15}  {:>6}\n", key.first, width, key.second, row.modules,
               with_commas(row.weights),
               row.bits == 0 ? ""
                             : fmt::format("{:.3f}", static_cast<double>(row.bits) /
                                                         static_cast<double>(row.weights)));
  fmt::print("\n{} weights quantized, {:.3f} bits each with scales; tensors {} -> {}\n",
             with_commas(plan.quantized_weights()), plan.bits_per_weight(),
             format_bytes(sizes.before), format_bytes(sizes.after));
  for (const PlanWarning& w : plan.warnings) fmt::print("warning: {}: {}\n", w.where, w.message);
}

Json to_json(const Plan& plan, const Sizes& sizes) {
  Json modules = Json::array(), warnings = Json::array();
  for (const PlannedModule& m : plan.modules) {
    Json entry{{"name", m.module->name},
               {"shape", {m.module->out_features, m.module->in_features}},
               {"format", m.format ? Json(m.recipe.wq) : Json()}};
    if (m.format) {
      entry["group_size"] = m.format->desc().group_size;
      entry["algorithm"] = m.recipe.algorithm;
      entry["bits_per_weight"] =
          static_cast<double>(m.stored_bits()) / static_cast<double>(m.weights());
      if (!m.note.empty()) entry["note"] = m.note;
    }
    modules.push_back(std::move(entry));
  }
  for (const PlanWarning& w : plan.warnings)
    warnings.push_back({{"where", w.where}, {"message", w.message}});
  return {{"modules", modules},
          {"warnings", warnings},
          {"bits_per_weight", plan.bits_per_weight()},
          {"weights", plan.quantized_weights()},
          {"bytes_before", sizes.before},
          {"bytes_after", sizes.after}};
}

void run(const po::variables_map& options) {
  const std::string directory = required(options, "model");
  const Recipe recipe =
      options.contains("config") ? Recipe::load(required(options, "config")) : Recipe{};
  const auto registry = open_registry(options);
  const Reader reader = open_original(directory);
  const auto model = registry->create_model(reader, options["model-type"].as<std::string>());
  const Plan plan = make_plan(*model, recipe, *registry, "");
  const Sizes sizes = sizes_of(reader, plan);
  if (wants_json(options))
    fmt::print("{}\n", to_json(plan, sizes).dump());
  else
    print(plan, sizes);
}

}  // namespace

const Command kPlan{"plan", "shows what a recipe will make of each module; nothing is run",
                    "  aqhost plan --model DIR --config RECIPE [--json]", add_options, run};

}  // namespace aqhost
