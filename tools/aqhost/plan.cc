#include "plan/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "checkpoint/reader.h"
#include "command.h"
#include "plan/loadable.h"
#include "run/exporter.h"
#include "run/quantize.h"

namespace aqhost {
namespace {

struct PlanOptions : ModelOptions {
  std::string recipe;
  ExportOptions result;
};

void add_options(OptionTable& table, PlanOptions& options) {
  add_model_options(table, options);
  add_recipe_option(table, options.recipe);
  add_export_options(table, options.result);
}

/// The bytes of tensors before and after quantization, and the weights and bits of those that are
/// quantized.
struct Size {
  int64_t before = 0, after = 0, weights = 0, bits = 0;

  bool operator==(const Size&) const = default;
};

struct Sizes {
  Size total;
  std::map<int32_t, Size> layers;
};

Sizes sizes_of(const Source& original, const Plan& plan) {
  Sizes sizes;
  sizes.total.before = original.stored_size().bytes;
  for (const TensorInfo& info : original.tensors()) sizes.total.after += info.nbytes();
  for (const PlannedModule& m : plan.modules) {
    const std::string& name = m.module->weight.name;
    const TensorInfo& info = *original.find(name);
    const int64_t dense = m.weights() * dtype_size(info.dtype);
    const int64_t change = m.format ? m.stored_bits() / 8 - dense : 0;
    const auto add = [&](Size& size) {
      size.after += change;
      if (!m.format) return;
      size.weights += m.weights();
      size.bits += m.stored_bits();
    };
    add(sizes.total);
    if (m.module->key.layer < 0) continue;
    Size& layer = sizes.layers[m.module->key.layer];
    layer.before += original.stored_bytes(name) * m.weights() / info.numel();
    layer.after += dense;
    add(layer);
  }
  return sizes;
}

std::string becomes(const PlannedModule& m) {
  return describe(m) + (m.format && m.recipe.algorithm == "rtn" ? " rtn" : "");
}

std::string bits(const Size& size) {
  if (size.weights == 0) return "";
  return fmt::format("{:.3f}", static_cast<double>(size.bits) / static_cast<double>(size.weights));
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

void print_modules(const Plan& plan) {
  struct Row {
    int64_t modules = 0, weights = 0;
    Size quantized;
  };
  std::map<std::pair<std::string, std::string>, Row> rows;
  std::size_t width = 0, wide = 0;
  for (const PlannedModule& m : plan.modules) {
    const std::string name = wildcard(m.module->name);
    width = std::max(width, name.size());
    wide = std::max(wide, becomes(m).size());
    Row& row = rows[{name, becomes(m)}];
    row.modules++;
    row.weights += m.weights();
    if (!m.format) continue;
    row.quantized.weights += m.weights();
    row.quantized.bits += m.stored_bits();
  }
  fmt::print("{:<{}}  {:<{}}  {:>7}  {:>15}  {:>6}\n", "modules", width, "becomes", wide, "number",
             "weights", "bits");
  for (const auto& [key, row] : rows)
    fmt::print("{:<{}}  {:<{}}  {:>7}  {:>15}  {:>6}\n", key.first, width, key.second, wide,
               row.modules, with_commas(row.weights), bits(row.quantized));
}

/// Consecutive layers of the same size share a line.
void print_layers(const Sizes& sizes) {
  fmt::print("\n{:<12}  {:>10}  {:>10}  {:>6}\n", "layers", "before", "after", "bits");
  for (auto it = sizes.layers.begin(); it != sizes.layers.end();) {
    auto end = it;
    while (end != sizes.layers.end() && end->second == it->second) ++end;
    const int32_t first = it->first, last = std::prev(end)->first;
    fmt::print("{:<12}  {:>10}  {:>10}  {:>6}\n",
               first == last ? std::to_string(first) : fmt::format("{}-{} each", first, last),
               format_bytes(it->second.before), format_bytes(it->second.after), bits(it->second));
    it = end;
  }
}

/// Whether an engine loads the export and gives right answers, and whether this is known only from
/// its source.
std::string answer(const Loadable& l) {
  const std::string plain = l.loads()            ? "yes"
                            : !l.refused.empty() ? "no"
                                                 : "no: it would load and give wrong answers";
  return l.run ? plain : plain + " (according to its source; the engine was not run)";
}

void print_loads(const std::vector<Loadable>& loads) {
  for (const Loadable& l : loads) {
    fmt::print("loads in {:<17}  {}\n", l.name(), answer(l));
    for (const std::string& problem : l.problems()) fmt::print("  {}\n", problem);
    for (const std::string& note : l.notes) fmt::print("  note: {}\n", note);
  }
}

/// What a run with this recipe needs; "" if it needs nothing.
std::string needs(const Plan& plan) {
  if (plan.needs_calibration()) return "calibration text (--calib), for GPTQ";
  return plan.observes_inputs() ? "calibration text (--calib), for the scale of rounded inputs"
                                : "";
}

/// One line for each kind of tensors that are only copied. It has the first of their prefixes.
void print_copied(const Model& model) {
  std::vector<std::pair<const Model::Copied*, std::size_t>> kinds;  // the first, number of tensors
  for (const Model::Copied& copied : model.copied()) {
    if (copied.tensors.empty()) continue;
    const auto same = std::find_if(kinds.begin(), kinds.end(), [&](const auto& kind) {
      return kind.first->what == copied.what;
    });
    if (same == kinds.end())
      kinds.emplace_back(&copied, copied.tensors.size());
    else
      same->second += copied.tensors.size();
  }
  for (const auto& [first, count] : kinds)
    fmt::print("{}*{}  {} tensors of {}, which are copied unchanged and never run\n", first->prefix,
               count > first->tensors.size() ? " and others" : "", count, first->what);
}

void print(const Plan& plan, const Sizes& sizes, const std::vector<Loadable>& loads,
           const Model& model) {
  print_modules(plan);
  print_copied(model);
  for (const std::string& name : model.extra_tensors())
    fmt::print("{}  is not known to the model and is copied unchanged\n", name);
  print_layers(sizes);
  fmt::print("{:<12}  {:>10}  {:>10}  {:>6}  ({} weights quantized, with scales)\n", "all tensors",
             format_bytes(sizes.total.before), format_bytes(sizes.total.after), bits(sizes.total),
             with_commas(plan.quantized_weights()));
  fmt::print("\n");
  if (!needs(plan).empty()) fmt::print("{:<26}  {}\n", "a run needs", needs(plan));
  print_loads(loads);
  for (const PlanWarning& w : plan.warnings) fmt::print("warning: {}\n", w.text());
}

/// What each engine does with the export, by the engine's id.
Json to_json(const std::vector<Loadable>& loads) {
  Json json{{"problems_in", Json::object()}, {"notes_in", Json::object()}};
  for (const Loadable& l : loads) {
    json["problems_in"][l.id] = l.problems();
    json["notes_in"][l.id] = l.notes;
    json["engines"][l.id] = {{"name", l.engine},
                             {"version", l.version},
                             {"rules_were_run", l.run},
                             {"loads", l.refused.empty()},
                             {"right", l.loads()}};
  }
  return json;
}

Json to_json(const Plan& plan, const Sizes& sizes, const std::vector<Loadable>& loads,
             const Model& model) {
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
    warnings.push_back({{"where", w.where}, {"message", w.message}, {"count", w.count}});
  Json layers = Json::array();
  for (const auto& [index, size] : sizes.layers)
    layers.push_back(
        {{"layer", index},
         {"bytes_before", size.before},
         {"bytes_after", size.after},
         {"weights", size.weights},
         {"bits_per_weight", size.weights == 0 ? Json()
                                               : Json(static_cast<double>(size.bits) /
                                                      static_cast<double>(size.weights))}});
  Json copied = Json::array();
  for (const Model::Copied& c : model.copied())
    if (!c.tensors.empty()) copied.push_back({{"what", c.what}, {"tensors", c.tensors}});
  Json json{{"modules", modules},
            {"layers", layers},
            {"copied", copied},
            {"extra_tensors", model.extra_tensors()},
            {"warnings", warnings},
            {"needs_calibration", !needs(plan).empty()},
            {"bits_per_weight", plan.bits_per_weight()},
            {"weights", plan.quantized_weights()},
            {"bytes_before", sizes.total.before},
            {"bytes_after", sizes.total.after}};
  json.update(to_json(loads));
  return json;
}

void run(const PlanOptions& options) {
  const Recipe recipe = options.recipe.empty() ? Recipe{} : Recipe::load(options.recipe);
  const auto registry = open_registry(options);
  const auto original = open_original(options.model, *registry);
  const auto model = open_model(*registry, *original, options);
  const Plan plan = make_plan(*model, recipe, *registry, "", container_of(options.result));
  check_side_files(*original);
  const Sizes sizes = sizes_of(*original, plan);
  const std::vector<Loadable> loads = loadable(plan, *model, *original);
  check_target(loads, options.result.target);
  if (options.json)
    fmt::print("{}\n", to_text(to_json(plan, sizes, loads, *model)));
  else
    print(plan, sizes, loads, *model);
}

}  // namespace

const Command kPlan{
    "plan", "shows what a recipe will make of each module; nothing is run",
    "plan --model DIR --config RECIPE [--target ENGINE] [--json]",
    "The tables show what each module becomes with how many bits per weight (scales included), and "
    "how large each layer is before and after. Below them, the command says which engines will "
    "load the export, or why they will not.",
    prepare<PlanOptions, add_options, run>};

}  // namespace aqhost
