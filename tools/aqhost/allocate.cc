#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "allocate/allocation.h"
#include "allocate/measurement.h"
#include "base/error.h"
#include "base/file.h"
#include "calibration_options.h"
#include "command.h"
#include "console_observer.h"
#include "forward/compute_type.h"
#include "heat_map.h"
#include "print_table.h"
#include "ranks.h"
#include "run/quantize.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

struct AllocateOptions : ModelOptions {
  std::string recipe, bits, candidates = "int2,int3,int4,int8", save_recipe, save_picture;
  std::string score = "loss", cost = "stored", target = "any", dtype = "auto", resume = "auto";
  bool overwrite = false;
  CalibrationChoice calibration;
  DeviceOptions device;
};

void add_options(OptionTable& table, AllocateOptions& options) {
  add_model_options(table, options);
  table.required_text("bits", "X", options.bits,
                      "Use at most X bits per weight on average, see above; for example 3.5.");
  table.text("candidates", "LIST", options.candidates,
             "Choose from these formats: ids for wq in a recipe, separated by commas. A format may "
             "have options, as in int2:group_size=32:symmetric=false. bf16 leaves a module as it "
             "is.");
  table.choice("score", {"loss", "error", "kl", "alpha"}, options.score,
               "Minimize this sum: loss, error, kl or alpha, see above.");
  table.choice("cost", {"stored", "active"}, options.cost,
               "Count the bits that are stored, or those that are active: read to compute one "
               "token, where routed experts count by the share of them that a token is sent to.");
  table.text("target", "ENGINE", options.target,
             "Choose only what this engine loads (vllm, sglang, transformers or llamacpp), and "
             "give the modules that it fuses the same format. With any, modules are alike that "
             "vLLM or SGLang fuse, and every candidate is allowed.");
  table.text("config", "FILE", options.recipe,
             "Take everything but the formats from this recipe: which modules stay as they are, "
             "group sizes, the settings of the run.");
  table.required_text("save-recipe", "FILE", options.save_recipe,
                      "Write the recipe to this file, which must be new.");
  table.text("save-picture", "FILE", options.save_picture,
             "Write a heat map of the bits by layer and part to this file, in SVG.");
  table.flag("overwrite", options.overwrite, "Replace the files if they exist.");
  add_resume_option(
      table, options.resume,
      "Decide about the finished steps of an earlier run for the same recipe: auto continues after "
      "them, if there are any; never removes them and begins anew; required fails if there are "
      "none.");
  add_calibration_options(table, options.calibration,
                          "Measure on this file, or on several files, as quantize does. The score "
                          "alpha needs none.");
  add_dtype_option(table, options.dtype);
  add_device_options(table, options.device);
}

double parse_bits(const std::string& text) {
  char* end = nullptr;
  const double bits = std::strtod(text.c_str(), &end);
  if (end != text.c_str() + text.size() || !(bits > 0 && bits <= 32))
    throw UsageError(fmt::format(
        "--bits \"{}\" is not a number of bits per weight, above 0 and up to 32", text));
  return bits;
}

/// Throws an Error if a file that is to be written exists, or if its folder does not.
void check_free(const std::string& file, bool overwrite) {
  if (file.empty()) return;
  const std::filesystem::path path = file, folder = path.parent_path();
  if (std::filesystem::is_directory(path)) fail("{}: is a folder, expected a file", file);
  if (std::filesystem::exists(path) && !overwrite)
    fail("{}: exists already; --overwrite replaces it", file);
  if (!folder.empty() && !std::filesystem::is_directory(folder))
    fail("{}: there is no folder {}", file, folder.string());
}

/// What the scores were computed from, as far as it is used later.
struct Measured {
  Scores scores;
  std::vector<WeightSpectrum> spectra;              // of the score alpha
  std::unique_ptr<ScoreMeasurement> measurement{};  // of the other scores
};

Measured measure_alpha(const AllocateOptions& options, const Source& original,
                       const Allocation& allocation, Comm& comm, RunObserver& observer) {
  warn_of_no_effect(options.given,
                    {"calib", "nsamples", "seqlen", "random-percent", "seed", "balance-experts",
                     "dtype", "device", "resume"},
                    "the score alpha needs no calibration");
  Measured measured;
  measured.spectra = weight_spectra(original, allocation.plan(), comm, observer);
  measured.scores = alpha_scores(measured.spectra, allocation.plan(), allocation.plans());
  return measured;
}

Measured measure_on_text(const AllocateOptions& options, const MeasureSetup& setup,
                         const Allocation& allocation, std::vector<PluginInfo> plugins) {
  ScoreMeasurementOptions measurement{
      options.score,           *calibration_of(options.calibration),
      allocation.candidates(), {allocation.parts().begin(), allocation.parts().end()},
      options.save_recipe,     resume_of(options.resume),
      std::move(plugins)};
  Measured measured;
  measured.measurement = std::make_unique<ScoreMeasurement>(setup, measurement);
  measured.scores = measured.measurement->run();
  return measured;
}

/// The names of the parts and the numbers of the layers, in order, with each part's place.
struct Grid {
  std::vector<std::string> columns;
  std::vector<int32_t> layers;

  explicit Grid(const std::vector<Allocation::Part>& parts) {
    for (const auto& part : parts) {
      if (column(part) == columns.size()) columns.push_back(part.name);
      if (row(part) == layers.size()) layers.push_back(part.layer);
    }
  }
  std::size_t column(const Allocation::Part& part) const {
    return static_cast<std::size_t>(std::find(columns.begin(), columns.end(), part.name) -
                                    columns.begin());
  }
  std::size_t row(const Allocation::Part& part) const {
    return static_cast<std::size_t>(std::find(layers.begin(), layers.end(), part.layer) -
                                    layers.begin());
  }
  std::string row_name(std::size_t r) const {
    return layers[r] < 0 ? "-" : std::to_string(layers[r]);
  }
};

/// A table of formats and scores by layer and part.
void print_parts(const Allocation& allocation) {
  const Grid grid(allocation.parts());
  std::vector<std::vector<std::string>> table(grid.layers.size() + 1,
                                              std::vector<std::string>(grid.columns.size() + 1));
  table[0][0] = "layer";
  for (std::size_t c = 0; c < grid.columns.size(); c++) table[0][c + 1] = grid.columns[c];
  for (std::size_t r = 0; r < grid.layers.size(); r++) table[r + 1][0] = grid.row_name(r);
  for (const auto& part : allocation.parts())
    table[grid.row(part) + 1][grid.column(part) + 1] =
        fmt::format("{} {:.2g}", part.becomes[part.chosen], part.choices[part.chosen].loss);
  print_table(table);
}

/// What a sum of scores is.
std::string meaning_of(const std::string& score) {
  if (score == "loss") return "predicted KL divergence, in nats per token";
  if (score == "kl") return "KL divergence of each part alone, in nats per token";
  return score == "error" ? "sum of squared errors per token, halved" : "score of AlphaQ";
}

void print(const AllocateOptions& options, const Allocation& allocation) {
  print_parts(allocation);
  fmt::print("\neach cell has a format and its share of the {}\n", meaning_of(options.score));
  fmt::print("{:<20}  {:>7}  {:>10}\n", "all parts in", "bits", options.score);
  for (std::size_t c = 0; c < allocation.candidates().size(); c++)
    if (allocation.is_possible(c))
      fmt::print("{:<20}  {:>7.3f}  {:>10.4g}\n", allocation.candidates()[c].text,
                 allocation.bits_of(c), allocation.score_of(c));
  fmt::print("{:<20}  {:>7.3f}  {:>10.4g}\n", "what was chosen", allocation.bits(),
             allocation.score());
  fmt::print("recipe in {}\n", options.save_recipe);
}

Json to_json(const AllocateOptions& options, const Allocation& allocation,
             const Measured& measured) {
  const std::vector<Candidate>& candidates = allocation.candidates();
  Json parts = Json::array(), uniform = Json::array(), alphas = Json::object();
  for (const auto& part : allocation.parts()) {
    Json names = Json::array(), choices = Json::array();
    for (const std::size_t i : part.modules)
      names.push_back(allocation.plan().modules[i].module->name);
    for (std::size_t c = 0; c < candidates.size(); c++)
      choices.push_back({{"candidate", candidates[c].text},
                         {"becomes", part.becomes[c]},
                         {"bits_per_weight", part.bits(c)},
                         {"score", part.choices[c].loss},
                         {"allowed", bool{part.allowed[c]}}});
    parts.push_back({{"layer", part.layer < 0 ? Json() : Json(part.layer)},
                     {"name", part.name},
                     {"modules", names},
                     {"weights", part.weights},
                     {"chosen", candidates[part.chosen].text},
                     {"choices", choices}});
  }
  for (std::size_t c = 0; c < candidates.size(); c++)
    if (allocation.is_possible(c))
      uniform.push_back({{"candidate", candidates[c].text},
                         {"bits_per_weight", allocation.bits_of(c)},
                         {"score", allocation.score_of(c)}});
  Json json{
      {"bits_per_weight", allocation.bits()}, {"cost", options.cost}, {"score_kind", options.score},
      {"score", allocation.score()},          {"uniform", uniform},   {"parts", parts},
      {"recipe", options.save_recipe}};
  for (std::size_t i = 0; i < measured.spectra.size(); i++)
    if (allocation.plan().modules[i].format)
      alphas[allocation.plan().modules[i].module->name] = measured.spectra[i].alpha;
  if (options.score == "alpha") json["alphas"] = alphas;
  return json;
}

HeatMap heat_map(const AllocateOptions& options, const Allocation& allocation) {
  const Grid grid(allocation.parts());
  HeatMap map;
  map.title = fmt::format("Bits per weight by layer and part, {:.3f} in all", allocation.bits());
  map.description = fmt::format(
      "A row for each layer of {} and a column for each part of a layer. A cell has the bits per "
      "weight, scales included, that aqhost allocate chose by the score {}; the darker, the more.",
      options.model, options.score);
  map.columns = grid.columns;
  for (std::size_t r = 0; r < grid.layers.size(); r++) map.rows.push_back(grid.row_name(r));
  for (const auto& part : allocation.parts())
    map.cells.push_back(
        {grid.row(part), grid.column(part), part.bits(part.chosen),
         fmt::format("layer {}, {}: {}, {:.4g}", grid.row_name(grid.row(part)), part.name,
                     part.becomes[part.chosen], part.choices[part.chosen].loss)});
  return map;
}

/// Throws an Error or a UsageError if the options contradict each other or a file cannot be
/// written.
void check(const AllocateOptions& options) {
  (void)find_engine(options.target);
  if (!calibration_of(options.calibration) && options.score != "alpha")
    throw UsageError(fmt::format(
        "the score {} is measured on calibration text: give --calib FILE, or --score alpha",
        options.score));
  check_device_name(options.device.name);
  check_free(options.save_recipe, options.overwrite);
  check_free(options.save_picture, options.overwrite);
  if (std::filesystem::weakly_canonical(options.save_recipe) ==
      std::filesystem::weakly_canonical(options.save_picture))
    throw UsageError(fmt::format("--save-recipe and --save-picture name the same file, {}",
                                 options.save_recipe));
}

void write_results(const AllocateOptions& options, const Allocation& allocation, double bits,
                   const Measured& measured) {
  write_file(options.save_recipe,
             allocation.recipe(fmt::format(
                 "Chosen by aqhost allocate: {:.4f} {}bits per weight, at most {:g} were allowed.\n"
                 "Each comment has the bits per weight, scales included, and the share of the {}.",
                 allocation.bits(), options.cost == "active" ? "active " : "", bits,
                 meaning_of(options.score))));
  if (!options.save_picture.empty())
    write_file(options.save_picture, to_svg(heat_map(options, allocation)));
  if (options.json)
    fmt::print("{}\n", to_text(to_json(options, allocation, measured)));
  else
    print(options, allocation);
}

void allocate(const AllocateOptions& options, double bits, Comm& comm,
              std::optional<at::Device> opened) {
  const auto registry = open_registry(options);
  const auto original = open_original(options.model, *registry);
  const auto model = open_model(*registry, *original, options);
  Allocation allocation(*original, *model, *registry,
                        {parse_candidates(options.candidates), options.recipe, options.target,
                         options.cost == "active" ? BitCost::kActive : BitCost::kStored});
  allocation.check_budget(bits);
  ConsoleObserver observer(quiet(options) || comm.rank() != 0);
  Measured measured;
  if (options.score == "alpha") {
    measured = measure_alpha(options, *original, allocation, comm, observer);
  } else {
    const at::Device device = opened ? *opened : open_device(options.device.name);
    const MeasureSetup setup{
        *original,
        *model,
        allocation.plan(),
        allocation.plans(),
        at::TensorOptions(device).dtype(compute_type(options.dtype, *original, device)),
        comm,
        observer};
    measured = measure_on_text(options, setup, allocation, registry->plugins());
  }
  if (comm.rank() != 0) return;
  allocation.set_scores(measured.scores);
  allocation.choose(bits);
  write_results(options, allocation, bits, measured);
  if (measured.measurement) measured.measurement->remove_work();
}

void run(const AllocateOptions& options) {
  const double bits = parse_bits(options.bits);
  (void)parse_candidates(options.candidates);
  check(options);
  set_threads(options.device);
  run_as_rank(options.device, [&](Comm& comm, std::optional<at::Device> device) {
    allocate(options, bits, comm, device);
  });
}

}  // namespace

const Command kAllocate{
    "allocate", "chooses formats for the parts of a model within a bit budget",
    "allocate --model MODEL --bits 3.5 --calib TEXT --save-recipe RECIPE",
    "Every part of a layer that an engine needs in one format (its routed experts; q, k and v; o; "
    "gate and up of a shared expert ...) gets one of the --candidates, such that the bits are at "
    "most --bits per weight and the sum of the scores is the least possible. The result is a "
    "recipe for quantize --config.\n\n"
    "What counts: the average is over all weights of the modules that the recipe of --config (or "
    "else the family) quantizes, as in plan. It includes scales, zero points and, for the "
    "candidate bf16, the bits of weights that stay as they are. Modules that the recipe leaves "
    "alone (routers, norms, embeddings, usually lm_head) are not counted.\n\n"
    "The score loss predicts the KL divergence from the original model. On calibration text, each "
    "module is solved in each candidate as in a run of quantize; its loss, the squared error of "
    "its output, is multiplied by the mean squared gradient that the model's predictions have at "
    "this output, which one pass back through the layers measures on 16 windows of text. The score "
    "error leaves the gradient out. The score kl is the KL divergence that is measured when one "
    "part alone is quantized, on up to 16 windows of text. The score alpha is that of AlphaQ "
    "(arXiv:2606.04980) and needs no text: a part whose weights have a spectrum with a heavier "
    "tail gets more bits.\n\n"
    "While scores are measured on text, each finished layer is kept in a work folder beside the "
    "recipe (RECIPE.work). If the command ends early, even by a crash, the same command continues "
    "after it, also with other --bits; if a signal stopped it, it ends with status 75. Several "
    "processes share the work as in quantize, see aqhost --help.",
    prepare<AllocateOptions, add_options, run>};

}  // namespace aqhost
