#include "run/quantize.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>

#include "base/error.h"
#include "base/memory.h"
#include "base/progress.h"
#include "command.h"
#include "console_observer.h"
#include "measure/coverage.h"
#include "plan/loadable.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

void add_options(po::options_description_easy_init add) {
  add_model_options(add);
  add_plugin_options(add);
  add("config", po::value<std::string>(),
      "recipe in YAML or JSON (see configs/); default: int4, group size 128");
  add("calib", po::value<std::vector<std::string>>()->composing(),
      "FILE or FILE=WEIGHT: what to calibrate on, may be repeated; GPTQ needs it, rtn does not");
  add("nsamples", po::value<int64_t>()->default_value(128), "windows to calibrate on, in all");
  add("seqlen", po::value<int64_t>()->default_value(512), "tokens of a window");
  add("random-percent", po::value<int64_t>()->default_value(50),
      "of the windows, how many in 100 are random tokens in place of text, so that the result is "
      "good on text of other kinds than --calib's, too");
  add("balance-experts",
      "choose the windows, from four times as many, that even out how often experts are used");
  add("seed", po::value<int64_t>()->default_value(0), "seed of every random choice");
  add("algorithm", po::value<std::string>(),
      "gptq or rtn for all modules, whatever the recipe says");
  add("save", po::value<std::string>(), "folder to write: a new one, or one that is empty");
  add("overwrite",
      "replace an earlier run's export in that folder; files that you added to it stay");
  add_dtype_option(add, "auto");
  add_device_option(add);
  add("memory-limit", po::value<int64_t>()->default_value(0),
      "MB that tensors may take on that device, as near as can be; 0: no limit but, on the CPU, "
      "that "
      "of the container or job (its control group)");
  add("resume", po::value<std::string>()->default_value("auto"),
      "what to do with the finished layers of an earlier run to the same folder: auto goes on "
      "after "
      "them, never begins anew, required fails if there are none");
  add_export_options(add);
  add("max-shard-size", po::value<int64_t>()->default_value(5000), "MB of a file at most");
}

std::string algorithm(const po::variables_map& options) {
  if (!options.contains("algorithm")) return "";
  auto name = options["algorithm"].as<std::string>();
  if (name != "gptq" && name != "rtn")
    throw UsageError(fmt::format("--algorithm \"{}\": expected gptq or rtn", name));
  return name;
}

std::optional<CalibrationOptions> calibration(const po::variables_map& options) {
  if (!options.contains("calib")) {
    if (options.contains("balance-experts"))
      throw UsageError("--balance-experts needs --calib, what to choose from");
    return {};
  }
  CalibrationOptions result;
  for (const auto& value : options["calib"].as<std::vector<std::string>>()) {
    if (value.empty()) throw UsageError("--calib is empty");
    result.files.push_back(parse_corpus_file(value));
  }
  result.nsamples = integer(options, "nsamples", 1, 1 << 24);
  result.seqlen = integer(options, "seqlen", 2, 1 << 24);
  result.seed = static_cast<uint64_t>(integer(options, "seed", 0, int64_t{1} << 62));
  result.random_percent = integer(options, "random-percent", 0, 99);
  result.balance_experts = options.contains("balance-experts");
  return result;
}

Resume resume(const po::variables_map& options) {
  const auto name = options["resume"].as<std::string>();
  if (name == "auto") return Resume::kAuto;
  if (name == "never") return Resume::kNever;
  if (name == "required") return Resume::kRequired;
  throw UsageError(fmt::format("--resume \"{}\": expected auto, never or required", name));
}

/// Where no limit is given: what the control group leaves, if it has one.
void limit_to_container(QuantizeOptions& options) {
  if (options.memory_limit != 0 || !options.device.is_cpu()) return;
  const int64_t limit = cgroup_memory_limit();
  if (limit == 0) return;
  options.memory_limit = std::max<int64_t>(1, limit - anonymous_memory_bytes());
  options.limit_is_standard = true;
}

/// The device to run on. None is opened where nothing is run: for rounding to nearest, or where
/// quantize() will refuse to run without text.
at::Device device(const po::variables_map& options, const Plan& plan) {
  const auto name = options["device"].as<std::string>();
  if (plan.runs_model() && options.contains("calib")) return open_device(name);
  check_device_name(name);
  if (!plan.runs_model())
    warn_of_no_effect(options,
                      {"calib", "nsamples", "seqlen", "random-percent", "seed", "balance-experts",
                       "dtype", "device", "memory-limit"},
                      "every module is rounded to nearest, which needs no calibration");
  return at::kCPU;
}

/// "vLLM 0.32, SGLang 0.5.23", or "nothing but aqhost".
std::string readers(const std::vector<Loadable>& loads) {
  std::vector<std::string> names;
  for (const Loadable& l : loads)
    if (l.loads()) names.push_back(l.name());
  return names.empty() ? "nothing but aqhost" : fmt::format("{}", fmt::join(names, ", "));
}

/// What a run was calibrated on, if it was, and what --balance-experts did, if it was asked for.
void print_calibration(const std::optional<CalibrationReport>& calibration) {
  if (!calibration) return;
  fmt::print("calibrated on windows of {} tokens: {} of text, {} of random tokens\n",
             calibration->seqlen, calibration->windows - calibration->random_windows,
             calibration->random_windows);
  if (const auto& balance = calibration->balance)
    fmt::print("experts balanced: spread of their tokens {:.3f} -> {:.3f}, of {} windows\n",
               balance->spread_before, balance->spread_after, balance->pool);
}

void print_summary(const RunReport& report, const std::string& target, int64_t original_bytes,
                   const std::vector<Loadable>& loads) {
  const double loss = report.rows.loss(), rtn_loss = report.rows.rtn_loss();
  fmt::print("{} modules, {} weights in {:.3f} bits each with scales\n", report.rows.modules.size(),
             with_commas(report.weights), report.bits_per_weight);
  if (report.resumed_layers > 0)
    fmt::print("{} of the layers were finished by an earlier run\n", report.resumed_layers);
  print_calibration(report.calibration);
  if (const std::size_t width = terminal_width(STDOUT_FILENO); width > 0)
    for (const std::string& row : coverage_rows(report.rows.experts, width))
      fmt::print("{}\n", row);
  if (rtn_loss > 0)
    fmt::print("loss {:.4g}, {:.1f} % of rounding to nearest\n", loss, 100 * loss / rtn_loss);
  fmt::print("{} -> {}, {}, peak memory {}\n", format_bytes(original_bytes),
             format_bytes(report.bytes), format_duration(report.total_seconds()),
             format_bytes(report.peak_memory_bytes));
  fmt::print("written to {}; loads in {}\n", target, readers(loads));
}

void run(const po::variables_map& options) {
  const std::string directory = required(options, "model");
  QuantizeOptions quantize_options;
  quantize_options.target = required(options, "save");
  quantize_options.max_shard_bytes =
      integer(options, "max-shard-size", 1, int64_t{1} << 40) * 1'000'000;
  quantize_options.dtype = options["dtype"].as<std::string>();
  quantize_options.overwrite = options.contains("overwrite");
  quantize_options.resume = resume(options);
  quantize_options.calibration = calibration(options);
  quantize_options.memory_limit = integer(options, "memory-limit", 0, int64_t{1} << 40) * 1'000'000;
  const std::string chosen = algorithm(options);
  const Recipe recipe =
      options.contains("config") ? Recipe::load(required(options, "config")) : Recipe{};

  const auto registry = open_registry(options);
  const Reader reader = open_original(directory);
  const auto model = open_model(*registry, reader, options);
  const Plan plan = make_plan(*model, recipe, *registry, chosen, layout(options));
  for (const PlanWarning& w : plan.warnings) spdlog::warn("{}", w.text());
  const std::vector<Loadable> loads = loadable(plan, *model, reader);
  check_target(loads, options["target"].as<std::string>());
  quantize_options.device = device(options, plan);
  limit_to_container(quantize_options);
  for (const Loadable& l : loads)
    for (const std::string& problem : l.problems()) spdlog::warn("{}: {}", l.verdict(), problem);
  ConsoleObserver observer(quiet(options));
  quantize_options.observer = &observer;
  quantize_options.plugins = registry->plugins();
  const RunReport report = quantize(reader, *model, plan, quantize_options);
  if (const std::string warning = starved_warning(report); !warning.empty())
    spdlog::warn("{}", warning);
  if (wants_json(options)) {
    fmt::print("{}\n", to_text(to_json(report)["totals"]));
    return;
  }
  int64_t original_bytes = 0;
  for (const TensorInfo& info : reader.tensors())
    original_bytes += info.numel() * dtype_size(info.dtype);
  print_summary(report, quantize_options.target.string(), original_bytes, loads);
}

}  // namespace

const Command kQuantize{
    "quantize", "quantizes a checkpoint (the default command)",
    "  aqhost --plugin-dir plugins --model DIR --config RECIPE --calib TEXT --save OUT\n\n"
    "Runs the model over calibration text, solves every linear map by GPTQ under Hessians "
    "weighted\n"
    "by the router, and writes a compressed-tensors checkpoint with quantization_report.json.\n\n"
    "--calib takes text (UTF-8, one document), JSON lines or a JSON array (a document each: a\n"
    "string, or an object with \"text\", or a chat in \"messages\"), and ids of the model's "
    "tokenizer\n"
    "as .npy ([tokens] or [documents, tokens]) or .safetensors (input_ids, and an attention_mask\n"
    "where there is padding). The content tells what a file is, not its name; a pipe will do.\n"
    "A document is cut into windows of --seqlen tokens; what is left of it, or all of a shorter\n"
    "one, shares windows with that of others, with the model's end-of-text token in between.\n"
    "Several files give equal parts of the --nsamples windows, or as their weights say:\n"
    "--calib prose.txt=3 --calib code.jsonl=1.\n\n"
    "Every finished layer is kept in a work folder (OUT.work, or OUT/.work where OUT was there\n"
    "before) until all are done. A run that was stopped, even by a crash, goes on after them when\n"
    "the same command is given again; aqhost status OUT.work says how far it is. A run that a\n"
    "signal stopped ends with status 75.",
    add_options, run};

}  // namespace aqhost
