#include "run/quantize.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>

#include "base/counted.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/shell.h"
#include "base/work_folder.h"
#include "calibration_options.h"
#include "command.h"
#include "console_observer.h"
#include "export/decoded_checkpoint.h"
#include "export/gguf.h"
#include "gguf_report.h"
#include "measure/coverage.h"
#include "plan/loadable.h"
#include "ranks.h"
#include "report/page.h"
#include "report/summary.h"
#include "run/status.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

constexpr const char* kMaxShardSize = "max-shard-size";

struct QuantizeCommandOptions : ModelOptions {
  std::string recipe, algorithm, save, resume = "auto", dtype = "auto";
  CalibrationChoice calibration;
  int64_t memory_limit_mb = 0, max_shard_mb = 5000;
  bool overwrite = false;
  ExportOptions result;
  DeviceOptions device;
};

void add_options(OptionTable& table, QuantizeCommandOptions& options) {
  add_model_options(table, options);
  add_recipe_option(table, options.recipe);
  add_calibration_options(
      table, options.calibration,
      "Calibrate on this file, or on several files: FILE or FILE=WEIGHT, see above. JSON lines may "
      "have chats (\"messages\"), which the model's chat template renders. GPTQ needs --calib, "
      "rounding to nearest does not.");
  table.choice("algorithm", {"gptq", "rtn"}, options.algorithm,
               "Solve all modules by gptq, or round them to nearest (rtn), whatever the recipe "
               "says.");
  table.required_text("save", "DIR", options.save,
                      "Write the export to this folder, which must be new or empty.");
  table.flag("overwrite", options.overwrite,
             "Replace an earlier export in the folder of --save. Files that you added to it stay.");
  add_resume_option(
      table, options.resume,
      "Decide about the finished layers of an earlier run to the same folder: auto "
      "continues after them if that is possible, and begins anew if there are none; never "
      "removes them and begins anew; required fails if the run cannot continue.");
  add_export_options(table, options.result);
  table.integer(kMaxShardSize, "MB", options.max_shard_mb, 1, int64_t{1} << 40,
                "Use several files for a layer that takes more than this; with --export gguf and "
                "this option, also several GGUF files.");
  add_dtype_option(table, options.dtype);
  add_device_options(table, options.device);
  table.integer("memory-limit", "MB", options.memory_limit_mb, 0, int64_t{1} << 40,
                "Limit the memory that tensors take on the device, as precisely as it can be "
                "computed. With 0, the limit on a CPU is that of the container or job (its control "
                "group), and on a GPU nine tenths of what is free of its memory.");
}

/// If the user gives no limit, the limit on a CPU is what the control group leaves, if there is
/// one. On a GPU it is nine tenths of what is free of its memory, because the computed need leaves
/// out what single operations take.
void set_standard_limit(QuantizeOptions& options) {
  if (options.memory_limit != 0) return;
  const int64_t group = cgroup_memory_limit();
  if (options.device.is_cpu() && group == 0) return;
  const int64_t room = options.device.is_cpu() ? group - anonymous_memory_bytes()
                                               : free_device_bytes(options.device) / 10 * 9;
  options.memory_limit = std::max<int64_t>(1, room);
  options.limit_is_standard = true;
}

/// The device to run on, which may be `opened` already. No device is opened if the model is not
/// run, because all modules are rounded to nearest, or because quantize() will refuse to run
/// without calibration text.
at::Device device(const QuantizeCommandOptions& options, const Plan& plan,
                  std::optional<at::Device> opened) {
  if (plan.runs_model() && !options.calibration.files.empty())
    return opened ? *opened : open_device(options.device.name);
  check_device_name(options.device.name);
  if (!plan.runs_model())
    warn_of_no_effect(options.given,
                      {"calib", "nsamples", "seqlen", "random-percent", "seed", "balance-experts",
                       "dtype", "device", "memory-limit"},
                      "every module is rounded to nearest, which needs no calibration");
  return at::kCPU;
}

/// "vLLM 0.33, SGLang 0.5.23", or "nothing but aqhost".
std::string readers(const std::vector<Loadable>& loads) {
  std::vector<std::string> names;
  for (const Loadable& l : loads)
    if (l.loads() && !l.gguf) names.push_back(l.name());
  return names.empty() ? "nothing but aqhost" : fmt::format("{}", fmt::join(names, ", "));
}

/// Prints the modules that cost most, for people at a terminal.
void print_worst_modules(const UnitReport& units) {
  constexpr std::size_t kModules = 5;
  const auto worst = worst_modules(units, kModules);
  std::size_t name = 0, format = 0;
  for (const auto& [module, m] : worst) {
    name = std::max(name, module.size());
    format = std::max(format, format_of(*m).size());
  }
  for (const auto& [module, m] : worst) {
    const double rtn_loss = m->solve->rtn_loss;
    fmt::print("{:<{}}  {:<{}}  {:>5.1f} % of the loss{}\n", module, name, format_of(*m), format,
               100 * m->solve->loss / units.loss(),
               rtn_loss > 0 ? fmt::format(", {:.1f} % of rounding to nearest",
                                          100 * m->solve->loss / rtn_loss)
                            : "");
  }
}

/// Prints what the run was calibrated on, if it was, and the effect of --balance-experts.
void print_calibration(const std::optional<CalibrationReport>& calibration) {
  if (!calibration) return;
  fmt::print("calibrated on windows of {} tokens: {} of text, {} of random tokens\n",
             calibration->seqlen, calibration->windows - calibration->random_windows,
             calibration->random_windows);
  if (const auto& balance = calibration->balance)
    fmt::print("experts balanced: spread of their tokens {:.3f} -> {:.3f}, of {}\n",
               balance->spread_before, balance->spread_after, counted(balance->pool, "window"));
}

void print_summary(const RunReport& report, const std::string& target, int64_t original_bytes,
                   const std::vector<Loadable>& loads) {
  const double loss = report.units.loss(), rtn_loss = report.units.rtn_loss();
  fmt::print("{}, {} weights in {:.3f} bits each with scales\n",
             counted(static_cast<int64_t>(report.units.modules.size()), "module"),
             with_commas(report.weights), report.bits_per_weight);
  if (report.resumed_layers > 0)
    fmt::print(
        "{} finished before the run was continued\n",
        counted(report.resumed_layers, "layer") + (report.resumed_layers == 1 ? " was" : " were"));
  print_calibration(report.calibration);
  if (const std::size_t width = terminal_width(STDOUT_FILENO); width > 0) {
    for (const std::string& row : coverage_rows(report.units.experts, width))
      fmt::print("{}\n", row);
    print_worst_modules(report.units);
  }
  if (rtn_loss > 0)
    fmt::print("loss {:.4g}, {:.1f} % of rounding to nearest\n", loss, 100 * loss / rtn_loss);
  fmt::print("{} -> {}, {}, peak memory {}\n", format_bytes(original_bytes),
             format_bytes(report.bytes), format_duration(report.total_seconds()),
             format_bytes(report.peak_memory_bytes));
  fmt::print("written to {}, with {}; loads in {}\n", target, kPageFile, readers(loads));
}

/// The bytes of the GGUF file that will be made of the export. Throws an Error if none can be made.
int64_t gguf_bytes(const Plan& plan, const Model& model, const Source& original) {
  return describe_gguf(original, model,
                       [&](const Module& m) { return plan.modules[m.index].format; })
      .bytes;
}

/// The limit of a GGUF file; 0: there is one file. Unlike shards, it is not divided unless the user
/// says so.
int64_t max_gguf_mb(const QuantizeCommandOptions& options) {
  return options.given.contains(kMaxShardSize) ? options.max_shard_mb : 0;
}

/// Makes the GGUF file of a finished export.
GgufSummary make_gguf(const QuantizeCommandOptions& options, const Registry& registry,
                      RunObserver& observer) {
  const std::filesystem::path file = std::filesystem::path(options.save) / kGgufFile;
  try {
    const auto source = open_source(options.save, registry);
    const auto model = registry.create_model(*source, options.model_type);
    GgufSummary summary = write_gguf(*source, *model, file, options.overwrite, observer,
                                     max_gguf_mb(options) * 1'000'000);
    warn_of_changes(summary, options.save);
    return summary;
  } catch (const Error& e) {
    fail(
        "{}. The export in {} is complete but for this file; aqhost convert {} --to gguf --out {} "
        "makes it",
        e.what(), options.save, options.save,
        max_gguf_mb(options) > 0
            ? fmt::format("{} --{} {}", file.string(), kMaxShardSize, options.max_shard_mb)
            : file.string());
  }
}

/// The name of a file without its folder, as a shell takes it.
std::string file_name(const std::string& path) {
  return shell_quoted(std::filesystem::path(path).filename().string());
}

/// The command that repeats the run, without the folders of this machine: files are given by their
/// names alone, and the model by the name that its card has for it.
std::string repeating_command(const QuantizeCommandOptions& options, const Source& original) {
  std::string text =
      fmt::format("aqhost quantize --model {}", shell_quoted(base_model_name(original)));
  const auto add = [&](const char* name, const auto& value) {
    if (options.given.contains(name)) text += fmt::format(" --{} {}", name, value);
  };
  add("model-type", options.model_type);
  if (options.strict) text += " --strict";
  add("config", file_name(options.recipe));
  for (const std::string& file : options.calibration.files) text += " --calib " + file_name(file);
  const CalibrationOptions& calibration = options.calibration.options;
  add("nsamples", calibration.nsamples);
  add("seqlen", calibration.seqlen);
  add("random-percent", calibration.random_percent);
  if (calibration.balance_experts) text += " --balance-experts";
  add("seed", options.calibration.seed);
  add("algorithm", options.algorithm);
  add("dtype", options.dtype);
  add("export", options.result.container);
  add("max-shard-size", options.max_shard_mb);
  return text + " --save OUT";
}

QuantizeOptions run_options(const QuantizeCommandOptions& options) {
  QuantizeOptions result;
  result.target = options.save;
  result.max_shard_bytes = options.max_shard_mb * 1'000'000;
  result.dtype = options.dtype;
  result.overwrite = options.overwrite;
  result.resume = resume_of(options.resume);
  result.calibration = calibration_of(options.calibration);
  result.memory_limit = options.memory_limit_mb * 1'000'000;
  return result;
}

void quantize_checkpoint(const QuantizeCommandOptions& options, Comm& comm,
                         std::optional<at::Device> opened) {
  set_threads(options.device);
  QuantizeOptions quantize_options = run_options(options);
  const std::string recipe_text = options.recipe.empty() ? "" : read_file(options.recipe);
  const Recipe recipe =
      options.recipe.empty() ? Recipe{} : Recipe::parse(recipe_text, options.recipe);
  const auto registry = open_registry(options);
  const auto original = open_original(options.model, *registry);
  quantize_options.card = {repeating_command(options, *original), recipe_text};
  if (is_quantized(original->config()))
    spdlog::info("{}: is stored quantized ({}); its weights are decoded and quantized anew",
                 options.model, quant_method(original->config(), options.model));
  const auto model = open_model(*registry, *original, options);
  const Plan plan =
      make_plan(*model, recipe, *registry, options.algorithm, container_of(options.result));
  for (const PlanWarning& w : plan.warnings) spdlog::warn("{}", w.text());
  const auto gpus = static_cast<int32_t>(options.result.gpus);
  std::vector<Loadable> loads = loadable(plan, *model, *original, gpus);
  suggest_group_sizes(loads, plan, *model, *original, *registry, gpus);
  check_target(loads, options.result.target);
  if (makes_gguf(options.result))
    quantize_options.later_bytes = gguf_bytes(plan, *model, *original);
  quantize_options.device = device(options, plan, opened);
  set_standard_limit(quantize_options);
  for (const Loadable& l : loads) {
    if (l.gguf) continue;  // who wants a GGUF file asks for it
    for (const std::string& problem : l.problems()) spdlog::warn("{}: {}", l.verdict(), problem);
    if (!l.remedy.empty()) spdlog::warn("{}: {}", l.name(), l.remedy);
  }
  ConsoleObserver observer(quiet(options) || comm.rank() != 0);
  quantize_options.observer = &observer;
  quantize_options.plugins = registry->plugins();
  quantize_options.comm = &comm;
  quantize_options.setup.command = options.arguments;
  quantize_options.setup.recipe_file = recipe.file();
  quantize_options.setup.recipe = recipe.text();
  quantize_options.engines = loads;
  const RunReport report = quantize(*original, *model, plan, quantize_options);
  if (comm.rank() != 0) return;
  std::optional<GgufSummary> gguf_file;
  if (makes_gguf(options.result)) gguf_file = make_gguf(options, *registry, observer);
  if (const std::string warning = starved_warning(report); !warning.empty())
    spdlog::warn("{}", warning);
  if (options.json) {
    Json totals = to_json(report)["totals"];
    if (gguf_file) totals["gguf"] = to_json(*gguf_file);
    fmt::print("{}\n", to_text(totals));
    return;
  }
  print_summary(report, options.save, original->stored_size().bytes, loads);
  if (gguf_file) fmt::print("{}: {}\n", files_text(*gguf_file), summary_text(*gguf_file));
}

/// What the user must know if a signal stops a run before it has finished a layer.
std::string interrupted_text(const std::filesystem::path& target) {
  const std::filesystem::path work = WorkFolder::of(target);
  try {
    if (read_status(work).finished_layers > 0)
      return fmt::format("interrupted; the finished layers are kept in {}", work.string());
  } catch (const Error&) {  // there are none
  }
  return "interrupted, nothing was written";
}

void run(const QuantizeCommandOptions& options) {
  try {
    check_interrupt();  // a signal may have come while the libraries started
    run_as_rank(options.device, [&](Comm& comm, std::optional<at::Device> device) {
      quantize_checkpoint(options, comm, device);
    });
  } catch (const Interrupted&) {
    throw RunInterrupted(interrupted_text(options.save));
  }
}

}  // namespace

const Command kQuantize{
    "quantize", "quantizes a checkpoint (the default command)",
    "--model MODEL --config RECIPE --calib TEXT --save OUT",
    "The model is run over calibration text. GPTQ solves every linear map under a Hessian, in "
    "which the router's weights count, and the result is a compressed-tensors checkpoint with a "
    "quantization_report.json.\n\n"
    "--calib takes plain text (UTF-8, one document), JSON lines or a JSON array, or token ids of "
    "the model's tokenizer. In JSON, a document is a string, an object with \"text\", or a chat in "
    "\"messages\", which becomes the text that the model's own chat template makes of it (without "
    "a template, its turns are joined by empty lines). Token ids come as .npy ([tokens] or "
    "[documents, tokens]) or as .safetensors (input_ids, and an attention_mask if there is "
    "padding). The kind of a file is recognised by its content, not by its name, and the file may "
    "be a pipe.\n\n"
    "A document is cut into windows of --seqlen tokens. The rest of a document, or a document that "
    "is shorter than a window, shares a window with others, with the model's end-of-text token in "
    "between. Several files contribute equal parts of the --nsamples windows, or parts in "
    "proportion to their weights: --calib prose.txt=3 --calib code.jsonl=1.\n\n"
    "Every finished layer is kept in a work folder (OUT.work, or OUT/.work if OUT existed before) "
    "until all layers are finished. If a run ends early, even by a crash, the same command "
    "continues after them; aqhost status OUT.work says how far the run is. A run that a signal "
    "stopped ends with status 75.\n\n"
    "Several processes can work on one export, one for each GPU or for each machine. torchrun "
    "--no-python, srun of Slurm, or RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the "
    "environment start them, all with the same options and with OUT on a file system that they "
    "share: torchrun --no-python --nproc-per-node 8 aqhost --model MODEL ... The calibration "
    "windows "
    "and the modules are dealt to the processes. If one of them ends or does not answer for 30 "
    "seconds, the others end as well, and the same command continues.",
    prepare<QuantizeCommandOptions, add_options, run>};

}  // namespace aqhost
