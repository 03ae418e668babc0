#include <fmt/format.h>

#include "base/error.h"
#include "base/progress.h"
#include "command.h"
#include "console_observer.h"
#include "export/decoded_checkpoint.h"
#include "forward/compute_type.h"
#include "measure/divergence.h"
#include "measure/evaluate.h"
#include "run/calibration.h"
#include "tensor/device.h"

namespace aqhost {
namespace {

void add_options(po::options_description_easy_init add) {
  add_model_options(add);
  add_plugin_options(add);
  add("text", po::value<std::string>(),
      "text to predict: UTF-8, JSON lines or ids, as --calib of quantize");
  add("window", po::value<int64_t>()->default_value(512), "tokens of a window");
  add_dtype_option(add, "float32");
  add_device_option(add);
  add("against", po::value<std::string>(),
      "folder of the original: how far the model is from it, layer by layer too");
}

void print(const Perplexity& result, const at::Tensor& windows) {
  fmt::print("perplexity {:.4f} over {} tokens ({} windows of {})\n", result.value,
             with_commas(result.tokens), windows.size(0), windows.size(1));
}

void print(const Divergence& d, const Perplexity& reference, const std::string& against) {
  fmt::print("perplexity {:.4f} of {}\n", reference.value, against);
  fmt::print("KL divergence {:.5f} nats a token, same top token {:.2f} %\n", d.kl, 100 * d.top1);
  fmt::print("hidden states are off by, after each layer and by that layer alone:\n");
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

void run(const po::variables_map& options) {
  const std::string directory = required(options, "model");
  const std::string text = required(options, "text");
  const int64_t window = integer(options, "window", 2, 1 << 24);
  const at::Device device = open_device(options["device"].as<std::string>());
  const auto registry = open_registry(options);
  const auto source = open_source(directory, *registry);
  const at::TensorOptions run_options = at::TensorOptions(device).dtype(
      compute_type(options["dtype"].as<std::string>(), *source, device));
  const auto model = open_model(*registry, *source, options);
  check_window(*model, window);
  ConsoleObserver observer(quiet(options));
  CorpusReader reader(directory, model->desc().vocab_size,
                      document_separator(source->config(), model->desc().vocab_size));
  const at::Tensor windows = read_windows(reader, text, window, observer).ids;
  observer.begin("evaluating", model->desc().n_layers, "layers");
  const auto tell = [&](int32_t layer) {
    observer.update(layer + 1, fmt::format("layer {}", layer));
  };
  if (!options.contains("against")) {
    const Perplexity result = perplexity(*source, *model, windows, tell, run_options);
    observer.end();
    if (wants_json(options))
      fmt::print("{}\n", to_text(Json{{"perplexity", result.value}, {"tokens", result.tokens}}));
    else
      print(result, windows);
    return;
  }
  const std::string against = required(options, "against");
  const auto original = open_source(against, *registry);
  const auto original_model = open_model(*registry, *original, options);
  const Divergences result = diverge({original.get(), original_model.get()},
                                     {{source.get(), model.get()}}, windows, tell, run_options);
  observer.end();
  const Divergence& d = result.models.front();
  if (wants_json(options)) {
    fmt::print("{}\n", to_text(to_json(d, result.reference)));
    return;
  }
  print(d.perplexity, windows);
  print(d, result.reference, against);
}

}  // namespace

const Command kEval{
    "eval", "measures perplexity on a text, of a checkpoint or an export",
    "  aqhost eval --model DIR --text FILE [--against ORIGINAL] [--window 512] [--json]\n\n"
    "The text's tokens are cut into windows as those of quantize's --calib are (documents shorter\n"
    "than a window share one); the loss is that of each next token inside its window. With "
    "--against the original runs\n"
    "beside the model: KL divergence of the next token from the original's, how often both\n"
    "hold the same token most likely, and by how much hidden states differ, |h - h0| / |h0|,\n"
    "after each layer, and by that layer alone on the original's hidden states.",
    add_options, run};

}  // namespace aqhost
