#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/progress.h"
#include "command.h"
#include "console_observer.h"
#include "export/decoded_checkpoint.h"
#include "measure/checkpoint_summary.h"
#include "measure/divergence.h"
#include "measure/evaluate.h"
#include "run/calibration.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

constexpr std::size_t kWorst = 3;

void add_options(po::options_description_easy_init add) {
  add("export", po::value<std::vector<std::string>>()->composing(),
      "folder to compare; --export may be left out");
  add("model-type", po::value<std::string>()->default_value("auto"),
      "id of the model plugin to use, or auto");
  add_strict_option(add);
  add_plugin_options(add);
  add("text", po::value<std::string>(), "text to predict, as of eval");
  add("window", po::value<int64_t>()->default_value(512), "tokens of a window");
  add("against", po::value<std::string>(), "folder of the original; needs --text");
  add_device_option(add);
}

/// One line of the table, or one part of what --json prints.
struct Row {
  std::string folder;
  std::unique_ptr<Source> source;
  std::unique_ptr<const Model> model;
  CheckpointSummary summary;
  double perplexity = 0;                      // 0: not measured
  std::optional<Divergence> from_original{};  // where there is one

  Runnable runnable() const { return {source.get(), model.get()}; }
};

Row open_row(const std::string& folder, const Registry& registry,
             const po::variables_map& options) {
  Row row{folder, open_source(folder, registry), nullptr, {}};
  row.model = open_model(registry, *row.source, options);
  row.summary = summarize(*row.source, *row.model);
  return row;
}

/// Fills in what has to be measured; the first row is the original where there is one.
void measure(std::vector<Row>& rows, bool against, const at::Tensor& windows,
             const at::TensorOptions& run_options, RunObserver& observer) {
  const auto layers = rows.front().model->desc().n_layers;
  observer.begin("evaluating", against ? layers : layers * static_cast<int>(rows.size()), "layers");
  int32_t done = 0;
  const auto tell = [&](int32_t layer) { observer.update(++done, fmt::format("layer {}", layer)); };
  if (!against) {
    for (Row& row : rows)
      row.perplexity = perplexity(*row.source, *row.model, windows, tell, run_options).value;
    return;
  }
  std::vector<Runnable> models;
  for (std::size_t i = 1; i < rows.size(); i++) models.push_back(rows[i].runnable());
  const Divergences all = diverge(rows.front().runnable(), models, windows, tell, run_options);
  rows.front().perplexity = all.reference.value;
  for (std::size_t i = 1; i < rows.size(); i++) {
    rows[i].from_original = all.models[i - 1];
    rows[i].perplexity = all.models[i - 1].perplexity.value;
  }
}

/// "2 (1.9 %), 0 (1.2 %)": by the layer's own error, or else by its part of the loss.
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
  std::vector<std::size_t> widths(table.front().size(), 0);
  for (const auto& line : table)
    for (std::size_t c = 0; c < line.size(); c++) widths[c] = std::max(widths[c], line[c].size());
  for (const auto& line : table) {
    std::string text;
    for (std::size_t c = 0; c < line.size(); c++)
      text += fmt::format("{:<{}}  ", line[c], widths[c]);
    fmt::print("{}\n", text.substr(0, text.find_last_not_of(' ') + 1));
  }
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

void run(const po::variables_map& options) {
  if (!options.contains("export")) throw UsageError("no folder is given: aqhost compare A B ...");
  const bool against = options.contains("against"), evaluate = options.contains("text");
  if (against && !evaluate) throw UsageError("--against needs --text, what to compare on");
  const auto device_name = options["device"].as<std::string>();
  check_device_name(device_name);
  if (!evaluate) warn_of_no_effect(options, {"window", "device"}, "without --text nothing is run");
  const at::Device device = evaluate ? open_device(device_name) : at::Device(at::kCPU);
  const auto registry = open_registry(options);
  std::vector<Row> rows;
  if (against) rows.push_back(open_row(required(options, "against"), *registry, options));
  for (const auto& folder : options["export"].as<std::vector<std::string>>())
    rows.push_back(open_row(folder, *registry, options));
  if (evaluate) {
    const Row& first = rows.front();
    const int64_t vocabulary = first.model->desc().vocab_size;
    ConsoleObserver observer(quiet(options));
    CorpusReader reader(first.folder, vocabulary,
                        document_separator(first.source->config(), vocabulary));
    const int64_t window = integer(options, "window", 2, 1 << 24);
    check_window(*first.model, window);
    const FileWindows file = read_windows(reader, required(options, "text"), window, observer);
    measure(rows, against, file.ids, at::TensorOptions(device).dtype(at::kFloat), observer);
    observer.end();
  }
  if (!wants_json(options)) return print(rows);
  Json list = Json::array();
  for (const Row& row : rows) list.push_back(to_json(row));
  fmt::print("{}\n", to_text(list));
}

}  // namespace

const Command kCompare{
    "compare",
    "puts several exports of one model in a table",
    "  aqhost compare A B ... [--text FILE [--against ORIGINAL]] [--json]\n\n"
    "Bits with scales, size of all tensors, and the experts (layer.expert) that have the\n"
    "largest parts of the loss in the report that lies with each export. With --text the\n"
    "perplexity; with --against as well KL divergence from the original and how often both\n"
    "hold the same token most likely, and the worst layers are those whose own error of\n"
    "hidden states is largest (see eval); without it those with the largest parts of the loss.",
    add_options,
    run,
    "export"};

}  // namespace aqhost
