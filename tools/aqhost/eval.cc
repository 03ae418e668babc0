#include <fmt/format.h>

#include "base/error.h"
#include "base/progress.h"
#include "calibrate/corpus.h"
#include "command.h"
#include "export/decoded_checkpoint.h"
#include "forward/compute_type.h"
#include "pipeline/evaluate.h"

namespace aqhost {
namespace {

void add_options(po::options_description_easy_init add) {
  add_model_options(add);
  add_plugin_options(add);
  add("text", po::value<std::string>(),
      "text to predict: UTF-8, JSONL or ids, as --calib of quantize");
  add("window", po::value<int64_t>()->default_value(512), "tokens of a window");
  add_dtype_option(add, "float32");
}

void run(const po::variables_map& options) {
  const std::string directory = required(options, "model");
  const std::string text = required(options, "text");
  const int64_t window = integer(options, "window", 2, 1 << 24);
  const auto registry = open_registry(options);
  const auto source = open_source(directory, *registry);
  const at::ScalarType dtype = compute_type(options["dtype"].as<std::string>(), *source);
  const auto model = registry->create_model(*source, options["model-type"].as<std::string>());
  const at::Tensor windows =
      CorpusReader(directory, model->desc().vocab_size).windows(text, window);
  Progress progress("evaluating", model->desc().n_layers, "layers", quiet(options));
  const Perplexity result = perplexity(
      *source, *model, windows,
      [&](int32_t layer) { progress.update(layer + 1, fmt::format("layer {}", layer)); }, dtype);
  progress.finish();
  if (wants_json(options))
    fmt::print("{}\n", Json{{"perplexity", result.value}, {"tokens", result.tokens}}.dump());
  else
    fmt::print("perplexity {:.4f} over {} tokens ({} windows of {})\n", result.value,
               with_commas(result.tokens), windows.size(0), window);
}

}  // namespace

const Command kEval{
    "eval", "measures perplexity on a text, of a checkpoint or an export",
    "  aqhost eval --model DIR --text FILE [--window 512] [--json]\n\n"
    "The text's tokens are cut into windows, each within one document; the loss is that\n"
    "of each next token inside its window.",
    add_options, run};

}  // namespace aqhost
