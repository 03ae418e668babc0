#include "plan/plan.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "base/counted.h"
#include "base/error.h"
#include "checkpoint/reader.h"
#include "command.h"
#include "gguf_report.h"
#include "plan/loadable.h"
#include "plugin/config_only.h"
#include "report/summary.h"
#include "run/estimate.h"
#include "run/exporter.h"
#include "run/quantize.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

struct PlanOptions : FamilyOptions {
  std::string model, config_only, recipe, device = "auto";
  CalibrationOptions calibration;  // only the number of windows and their length
  ExportOptions result;
};

void add_options(OptionTable& table, PlanOptions& options) {
  table.model("model", options.model, ModelPart::kWeights, kModelHelp);
  table.model(
      "config-only", options.config_only, ModelPart::kConfig,
      "Read this config.json, or that of a folder or of a model in the cache, in place of a "
      "checkpoint, for example before a download of the weights.");
  table.suggest("config-only", {"*.json"});
  add_family_options(table, options);
  add_recipe_option(table, options.recipe);
  table.integer("nsamples", "N", options.calibration.nsamples, 1, 1 << 24,
                "Predict a run over N windows.");
  table.integer("seqlen", "N", options.calibration.seqlen, 2, 1 << 24,
                "Predict a run over windows of N tokens each.");
  table.text("device", "NAME", options.device,
             "Predict a run on this device: cpu, cuda, cuda:NUMBER, or auto, which is a GPU if "
             "there is one.");
  table.suggest("device", kDeviceNames);
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

void print_modules(const Plan& plan) {
  struct Row {
    int64_t modules = 0, weights = 0;
    Size quantized;
  };
  std::map<std::pair<std::string, std::string>, Row> rows;
  std::size_t width = 0, wide = 0;
  for (const PlannedModule& m : plan.modules) {
    const std::string name = name_without_numbers(m.module->name);
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
  const std::string yes = l.gguf ? "yes, as a GGUF file" : "yes";
  const std::string plain = l.loads()            ? yes
                            : !l.refused.empty() ? "no"
                                                 : "no: it would load and give wrong answers";
  return l.run ? plain : plain + " (according to its source; the engine was not run)";
}

void print_loads(const std::vector<Loadable>& loads) {
  for (const Loadable& l : loads) {
    fmt::print("loads in {:<17}  {}\n", l.name(), answer(l));
    for (const std::string& problem : l.problems()) fmt::print("  {}\n", problem);
    if (!l.remedy.empty()) fmt::print("  {}\n", l.remedy);
    for (const std::string& note : l.notes) fmt::print("  note: {}\n", note);
  }
}

/// Whether a GGUF file can be made of the export.
struct GgufFit {
  std::string problem;  // "" if it can
  GgufSummary summary;
};

GgufFit fit_gguf(const Plan& plan, const Model& model, const Source& source,
                 const std::vector<Loadable>& loads) {
  for (const Loadable& l : loads)
    if (l.gguf && !l.loads()) return {l.problems().front(), {}};
  const auto format_of = [&](const Module& m) { return plan.modules[m.index].format; };
  return {"", describe_gguf(source, model, format_of, false)};  // the tokenizer has been read
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

/// What a run will take.
struct Prediction {
  RunEstimate run;
  MachineRates rates;
  int64_t windows, seqlen;
};

/// Rounded to two digits: "45 s", "17 min", "3.2 h".
std::string about(double seconds) {
  if (seconds < 9.5) return fmt::format("{:.1g} s", std::max(seconds, 1.0));
  const auto [value, unit] = seconds < 95          ? std::pair(seconds, "s")
                             : seconds < 95.0 * 60 ? std::pair(seconds / 60, "min")
                                                   : std::pair(seconds / 3600, "h");
  const double step = value < 9.5 ? 0.1 : value < 95 ? 1 : 10;
  return fmt::format("{:.{}f} {}", std::round(value / step) * step, step < 1 ? 1 : 0, unit);
}

void print(const Prediction& prediction, bool runs_model, bool refines) {
  const auto& [run, rates, windows, seqlen] = prediction;
  const std::string least = about(run.least_seconds), most = about(run.most_seconds);
  fmt::print("{:<26}  about {} on {}{}\n", "a run takes",
             least == most ? least : least + " to " + most, rates.device,
             runs_model ? fmt::format(", with {} windows of {} tokens", windows, seqlen) : "");
  fmt::print(
      "  predicted from the number of operations, {} rates of {}, and the times of other runs{}\n",
      rates.measured ? "measured" : "known", rates.cpu ? "this CPU" : "this kind of GPU",
      refines ? "; learned rounding (refine) takes longer, and is not counted" : "");
  if (!runs_model) return;
  fmt::print("{:<26}  at least {} for tensors, or {} if the hidden states are held elsewhere\n",
             rates.cpu ? "its memory" : "its memory on the GPU", format_bytes(run.memory_bytes),
             format_bytes(run.least_memory_bytes));
}

void print(const Plan& plan, const Sizes& sizes, const std::vector<Loadable>& loads,
           const GgufFit& fit, const Model& model, const Prediction& prediction) {
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
  print(prediction, plan.runs_model(),
        std::any_of(plan.modules.begin(), plan.modules.end(),
                    [](const PlannedModule& m) { return m.refined(); }));
  print_loads(loads);
  if (fit.problem.empty()) fmt::print("  {}\n", summary_text(fit.summary));
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
    if (!l.remedy.empty()) json["engines"][l.id]["remedy"] = l.remedy;
  }
  return json;
}

Json to_json(const Prediction& prediction) {
  const auto& [run, rates, windows, seqlen] = prediction;
  return {{"seconds", {run.least_seconds, run.most_seconds}},
          {"memory_bytes", run.memory_bytes},
          {"least_memory_bytes", run.least_memory_bytes},
          {"device", rates.device},
          {"rates_were_measured", rates.measured},
          {"windows", windows},
          {"seqlen", seqlen}};
}

Json to_json(const Plan& plan, const Sizes& sizes, const std::vector<Loadable>& loads,
             const GgufFit& fit, const Model& model, const Prediction& prediction,
             int64_t parameters) {
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
            {"parameters", parameters},
            {"run", to_json(prediction)},
            {"bytes_before", sizes.total.before},
            {"bytes_after", sizes.total.after}};
  json.update(to_json(loads));
  json["gguf"] = {{"fits", fit.problem.empty()}};
  if (fit.problem.empty())
    json["gguf"].update({{"architecture", fit.summary.architecture},
                         {"types", fit.summary.types},
                         {"bytes", fit.summary.bytes}});
  else
    json["gguf"]["problem"] = fit.problem;
  return json;
}

int64_t parameters_of(const Source& original) {
  int64_t sum = 0;
  for (const TensorInfo& tensor : original.tensors()) sum += tensor.numel();
  return sum;
}

std::unique_ptr<const Source> open_source(const PlanOptions& options, const Registry& registry) {
  if (options.model.empty() == options.config_only.empty())
    throw UsageError("plan needs either --model, a checkpoint, or --config-only, a config.json");
  if (!options.model.empty()) return open_original(options.model, registry);
  std::filesystem::path file = options.config_only;
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored)) file /= "config.json";
  auto config = std::make_unique<ConfigOnly>(file, registry, options.model_type);
  if (is_quantized(config->config()))
    spdlog::info(
        "{}: has a quantization_config; the sizes before are those of the same weights in BF16",
        file.string());
  return config;
}

void run(const PlanOptions& options) {
  check_device_name(options.device);
  const Recipe recipe = options.recipe.empty() ? Recipe{} : Recipe::load(options.recipe);
  const auto registry = open_registry(options);
  const auto source = open_source(options, *registry);
  const auto model = open_model(*registry, *source, options);
  const Plan plan = make_plan(*model, recipe, *registry, "", container_of(options.result));
  if (!options.model.empty()) check_side_files(*source);
  if (!plan.runs_model())
    warn_of_no_effect(options.given, {"nsamples", "seqlen", "device"},
                      "every module is rounded to nearest, which needs no calibration");
  const Sizes sizes = sizes_of(*source, plan);
  const auto gpus = static_cast<int32_t>(options.result.gpus);
  const bool has_files = !options.model.empty();
  std::vector<Loadable> loads = loadable(plan, *model, *source, gpus, has_files);
  suggest_group_sizes(loads, plan, *model, *source, *registry, gpus, has_files);
  check_target(loads, options.result.target);
  const auto [windows, seqlen] =
      std::pair(options.calibration.nsamples, options.calibration.seqlen);
  const MachineRates rates = machine_rates(plan.runs_model() ? options.device : "cpu");
  const Prediction prediction{estimate_run(*source, *model, plan, windows, seqlen, rates), rates,
                              windows, seqlen};
  const int64_t parameters = parameters_of(*source);
  const GgufFit fit = fit_gguf(plan, *model, *source, loads);
  if (makes_gguf(options.result) && !fit.problem.empty()) fail("{}", fit.problem);
  if (options.json) {
    fmt::print("{}\n", to_text(to_json(plan, sizes, loads, fit, *model, prediction, parameters)));
    return;
  }
  if (options.model.empty())
    fmt::print(
        "by config.json alone: {} parameters, without tensors that a checkpoint may have besides "
        "and that are only copied\n\n",
        with_commas(parameters));
  print(plan, sizes, loads, fit, *model, prediction);
}

}  // namespace

const Command kPlan{
    "plan", "shows what a recipe will make of each module; nothing is run",
    "plan --model MODEL --config RECIPE [--target ENGINE] [--json]\n"
    "plan --config-only CONFIG --config RECIPE [--nsamples N] [--seqlen N]",
    "The tables show what each module becomes with how many bits per weight (scales included), and "
    "how large each layer is before and after. Below them, the command predicts the time and the "
    "memory that a run will take, and says which engines will load the export, or why they will "
    "not.\n\n"
    "With --config-only, no weights are needed: the names and shapes of the tensors follow from "
    "config.json. The time is a prediction for one process: the operations of the run divided by "
    "the rates of the device, times what runs of other models have taken in relation to that. The "
    "files are assumed to come from the page cache, at 4 GB/s.",
    prepare<PlanOptions, add_options, run>};

}  // namespace aqhost
