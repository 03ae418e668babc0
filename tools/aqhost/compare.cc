#include <fmt/format.h>

#include <algorithm>

#include "base/counted.h"
#include "base/error.h"
#include "base/progress.h"
#include "command.h"
#include "console_observer.h"
#include "export/decoded_checkpoint.h"
#include "measure/checkpoint_summary.h"
#include "measure/divergence.h"
#include "measure/evaluate.h"
#include "print_table.h"
#include "ranks.h"
#include "run/calibration.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

constexpr std::size_t kWorst = 3;

struct CompareOptions : FamilyOptions {
  std::vector<std::string> folders;
  std::string text, against;
  int64_t window = 512;
  DeviceOptions device;
};

void add_options(OptionTable& table, CompareOptions& options) {
  table.list("folder", "MODEL", options.folders,
             "Compare the export in this folder, or the model of this id as for --model of eval. "
             "The option's name may be left out.");
  table.take_bare_arguments("folder");
  table.renamed("export", "folder");
  table.text("text", "FILE", options.text, "Measure on this file, as eval does.");
  add_window_option(table, options.window);
  table.model("against", options.against, ModelPart::kWeights,
              "Also measure how far the exports are from this original model, a folder or an id as "
              "for --model of eval.");
  add_device_options(table, options.device);
  add_family_options(table, options);
}

/// One line of the table, or one element of the array that --json prints.
struct Row {
  std::string folder;
  std::unique_ptr<Source> source;
  std::unique_ptr<const Model> model;
  CheckpointSummary summary;
  double perplexity = 0;                      // 0: not measured
  std::optional<Divergence> from_original{};  // if the original model is given

  Runnable runnable() const { return {source.get(), model.get()}; }
};

Row open_row(const std::string& folder, const Registry& registry, const FamilyOptions& options) {
  Row row{folder, open_source(find_model(folder, ModelPart::kWeights), registry), nullptr, {}};
  row.model = open_model(registry, *row.source, options);
  row.summary = summarize(*row.source, *row.model);
  return row;
}

/// Fills in what has to be measured. If `against`, the first row is the original model.
void measure(std::vector<Row>& rows, bool against, const at::Tensor& windows,
             const at::TensorOptions& run_options, RunObserver& observer, Comm& comm) {
  const auto layers = rows.front().model->desc().n_layers;
  observer.begin("evaluating", against ? layers : layers * static_cast<int>(rows.size()), "layers");
  int32_t done = 0;
  const auto report_layer = [&](int32_t layer) {
    observer.update(++done, fmt::format("layer {}", layer));
  };
  if (!against) {
    for (Row& row : rows)
      row.perplexity =
          perplexity(*row.source, *row.model, windows, report_layer, run_options, &comm).value;
    return;
  }
  std::vector<Runnable> models;
  for (std::size_t i = 1; i < rows.size(); i++) models.push_back(rows[i].runnable());
  const Divergences all =
      diverge(rows.front().runnable(), models, windows, report_layer, run_options, &comm);
  rows.front().perplexity = all.reference.value;
  for (std::size_t i = 1; i < rows.size(); i++) {
    rows[i].from_original = all.models[i - 1];
    rows[i].perplexity = all.models[i - 1].perplexity.value;
  }
}

/// "2 (1.9 %), 0 (1.2 %)": the layers with the largest errors of their own, or, if the row was not
/// compared with the original model, with the largest shares of the loss.
std::string worst_layers(const Row& row) {
  std::vector<std::pair<double, int32_t>> layers;
  if (row.from_original)
    for (std::size_t l = 0; l < row.from_original->layers.size(); l++)
      layers.emplace_back(row.from_original->layers[l].own, static_cast<int32_t>(l));
  else
    for (const LossShare& s : row.summary.layers) layers.emplace_back(s.share, s.layer);
  std::stable_sort(layers.begin(), layers.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::string text;
  for (std::size_t i = 0; i < std::min(kWorst, layers.size()); i++)
    text +=
        fmt::format("{}{} ({:.1f} %)", i > 0 ? ", " : "", layers[i].second, 100 * layers[i].first);
  return text;
}

std::string worst_experts(const Row& row) {
  std::string text;
  for (std::size_t i = 0; i < std::min(kWorst, row.summary.experts.size()); i++) {
    const LossShare& s = row.summary.experts[i];
    text += fmt::format("{}{}.{} ({:.1f} %)", i > 0 ? ", " : "", s.layer, s.expert, 100 * s.share);
  }
  return text;
}

void print(const std::vector<Row>& rows) {
  std::vector<std::vector<std::string>> table{
      {"folder", "bits", "size", "perplexity", "KL", "same top", "worst layers", "worst experts"}};
  for (const Row& row : rows) {
    const auto& d = row.from_original;
    table.push_back({row.folder, fmt::format("{:.3f}", row.summary.bits_per_weight),
                     format_bytes(row.summary.bytes),
                     row.perplexity > 0 ? fmt::format("{:.4f}", row.perplexity) : "",
                     d ? fmt::format("{:.5f}", d->kl) : "",
                     d ? fmt::format("{:.2f} %", 100 * d->top1) : "", worst_layers(row),
                     worst_experts(row)});
  }
  print_table(table);
}

Json to_json(const Row& row) {
  const auto& d = row.from_original;
  Json layers = Json::array(), experts = Json::array();
  for (int32_t l = 0; l < row.model->desc().n_layers; l++) layers.push_back({{"layer", l}});
  for (const LossShare& s : row.summary.layers)
    layers[static_cast<std::size_t>(s.layer)]["loss_share"] = s.share;
  for (std::size_t l = 0; d && l < d->layers.size(); l++) {
    layers[l]["error"] = d->layers[l].total;
    layers[l]["own_error"] = d->layers[l].own;
  }
  for (const LossShare& s : row.summary.experts)
    experts.push_back({{"layer", s.layer}, {"expert", s.expert}, {"loss_share", s.share}});
  return {{"folder", row.folder},
          {"bits_per_weight", row.summary.bits_per_weight},
          {"bytes", row.summary.bytes},
          {"perplexity", row.perplexity > 0 ? Json(row.perplexity) : Json()},
          {"kl_divergence", d ? Json(d->kl) : Json()},
          {"top1_agreement", d ? Json(d->top1) : Json()},
          {"layers", layers},
          {"experts", experts}};
}

/// Throws an Error or a UsageError if the options contradict each other.
void check(const CompareOptions& options) {
  if (options.folders.empty()) throw UsageError("no folder is given: aqhost compare A B ...");
  if (!options.against.empty() && options.text.empty())
    throw UsageError("--against needs --text, what to compare on");
  check_device_name(options.device.name);
  if (options.text.empty())
    warn_of_no_effect(options.given, {"window", "device", "threads"},
                      "without --text nothing is run");
}

void compare(const CompareOptions& options, Comm& comm, std::optional<at::Device> opened) {
  const bool against = !options.against.empty(), evaluate = !options.text.empty();
  const at::Device device = !evaluate ? at::Device(at::kCPU)
                            : opened  ? *opened
                                      : open_device(options.device.name);
  const auto registry = open_registry(options);
  std::vector<Row> rows;
  if (against) rows.push_back(open_row(options.against, *registry, options));
  for (const std::string& folder : options.folders)
    rows.push_back(open_row(folder, *registry, options));
  if (evaluate) {
    const Row& first = rows.front();
    const int64_t vocabulary = first.model->desc().vocab_size;
    ConsoleObserver observer(quiet(options) || comm.rank() != 0);
    CorpusReader reader(first.source->directory(), vocabulary,
                        document_separator(first.source->config(), vocabulary));
    check_window(*first.model, options.window);
    const FileWindows file = read_windows(reader, options.text, options.window, observer);
    measure(rows, against, file.ids, at::TensorOptions(device).dtype(at::kFloat), observer, comm);
    observer.end();
  }
  if (comm.rank() != 0) return;
  if (!options.json) return print(rows);
  Json list = Json::array();
  for (const Row& row : rows) {
    list.push_back(to_json(row));
    if (!evaluate) continue;
    list.back()["text"] = options.text;
    list.back()["window"] = options.window;
  }
  fmt::print("{}\n", to_text(list));
}

void run(const CompareOptions& options) {
  check(options);
  set_threads(options.device);
  run_as_rank(options.device, [&](Comm& comm, std::optional<at::Device> device) {
    compare(options, comm, device);
  });
}

}  // namespace

const Command kCompare{
    "compare", "puts several exports of one model in a table",
    "compare A B ... [--text FILE [--against ORIGINAL]] [--json]",
    "The table shows bits per weight (scales included), the size of all tensors, and the experts "
    "(layer.expert) with the largest shares of the loss in quantization_report.json of each "
    "export. The worst layers are those with the largest shares of the loss.\n\n"
    "With --text, the table also shows the perplexity. With --against, it also shows the KL "
    "divergence from the original model and how often both consider the same token the most "
    "likely one; the worst layers are then those with the largest errors of their own in the "
    "hidden states (see aqhost eval --help).",
    prepare<CompareOptions, add_options, run>};

}  // namespace aqhost
