#include <fmt/format.h>

#include "base/counted.h"
#include "base/error.h"
#include "base/progress.h"
#include "command.h"
#include "console_observer.h"
#include "export/decoded_checkpoint.h"
#include "forward/compute_type.h"
#include "measure/divergence.h"
#include "measure/evaluate.h"
#include "ranks.h"
#include "run/calibration.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

struct EvalOptions : ModelOptions {
  std::string text, against, dtype = "float32";
  int64_t window = 512;
  DeviceOptions device;
};

void add_options(OptionTable& table, EvalOptions& options) {
  add_model_options(table, options);
  table.required_text("text", "FILE", options.text,
                      "Measure on this file: text, JSON lines or token ids, like --calib of "
                      "quantize.");
  add_window_option(table, options.window);
  table.model("against", options.against, ModelPart::kWeights,
              "Also measure how far the model is from this original model, a folder or an id as "
              "for --model.");
  add_dtype_option(table, options.dtype);
  add_device_options(table, options.device);
}

void print(const Perplexity& result, const at::Tensor& windows) {
  fmt::print("perplexity {:.4f} over {} {} ({} of {})\n", result.value, with_commas(result.tokens),
             result.tokens == 1 ? "token" : "tokens", counted(windows.size(0), "window"),
             windows.size(1));
}

void print(const Divergence& d, const Perplexity& reference, const std::string& against) {
  fmt::print("perplexity {:.4f} of {}\n", reference.value, against);
  fmt::print("KL divergence {:.5f} nats per token, same top token {:.2f} %\n", d.kl, 100 * d.top1);
  fmt::print("errors of hidden states, in total after each layer and of that layer alone:\n");
  for (std::size_t l = 0; l < d.layers.size(); l++)
    fmt::print("layer {:>3}  {:6.2f} %  {:6.2f} %\n", l, 100 * d.layers[l].total,
               100 * d.layers[l].own);
}

Json to_json(const Divergence& d, const Perplexity& reference) {
  Json layers = Json::array();
  for (std::size_t l = 0; l < d.layers.size(); l++)
    layers.push_back({{"layer", l}, {"error", d.layers[l].total}, {"own_error", d.layers[l].own}});
  return {{"perplexity", d.perplexity.value},
          {"tokens", d.perplexity.tokens},
          {"against_perplexity", reference.value},
          {"kl_divergence", d.kl},
          {"top1_agreement", d.top1},
          {"layers", layers}};
}

void evaluate(const EvalOptions& options, Comm& comm, at::Device device) {
  const auto registry = open_registry(options);
  const auto source = open_source(options.model, *registry);
  const at::TensorOptions run_options =
      at::TensorOptions(device).dtype(compute_type(options.dtype, *source, device));
  const auto model = open_model(*registry, *source, options);
  check_window(*model, options.window);
  ConsoleObserver observer(quiet(options) || comm.rank() != 0);
  CorpusReader reader(options.model, model->desc().vocab_size,
                      document_separator(source->config(), model->desc().vocab_size));
  const at::Tensor windows = read_windows(reader, options.text, options.window, observer).ids;
  observer.begin("evaluating", model->desc().n_layers, "layers");
  const auto report_layer = [&](int32_t layer) {
    observer.update(layer + 1, fmt::format("layer {}", layer));
  };
  if (options.against.empty()) {
    const Perplexity result =
        perplexity(*source, *model, windows, report_layer, run_options, &comm);
    observer.end();
    if (comm.rank() != 0) return;
    if (options.json)
      fmt::print("{}\n", to_text(Json{{"perplexity", result.value}, {"tokens", result.tokens}}));
    else
      print(result, windows);
    return;
  }
  const auto original = open_source(options.against, *registry);
  const auto original_model = open_model(*registry, *original, options);
  const Divergences result =
      diverge({original.get(), original_model.get()}, {{source.get(), model.get()}}, windows,
              report_layer, run_options, &comm);
  observer.end();
  if (comm.rank() != 0) return;
  const Divergence& d = result.models.front();
  if (options.json) {
    fmt::print("{}\n", to_text(to_json(d, result.reference)));
    return;
  }
  print(d.perplexity, windows);
  print(d, result.reference, options.against);
}

void run(const EvalOptions& options) {
  set_threads(options.device);
  run_as_rank(options.device, [&](Comm& comm, std::optional<at::Device> device) {
    evaluate(options, comm, device ? *device : open_device(options.device.name));
  });
}

}  // namespace

const Command kEval{
    "eval", "measures the perplexity of a checkpoint or an export on a text",
    "eval --model MODEL --text FILE [--against ORIGINAL] [--json]",
    "The tokens of the text are cut into windows as by quantize (documents that are shorter than a "
    "window share one). The perplexity is that of each next token inside its window. "
    "Several processes (see aqhost --help) share the windows.\n\n"
    "With --against, the original model runs beside the model. The command then also prints the "
    "KL divergence of the next token from the original's, how often both models consider the same "
    "token the most likely one, and how far hidden states are from the original's, |h - h0| / "
    "|h0|: after each layer, and for each layer alone when its input is the original's.",
    prepare<EvalOptions, add_options, run>};

}  // namespace aqhost
