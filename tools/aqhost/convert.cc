#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <span>

#include "base/counted.h"
#include "command.h"
#include "console_observer.h"
#include "export/decoded_checkpoint.h"
#include "gguf_report.h"

namespace aqhost {
namespace {

struct ConvertOptions : ModelOptions {
  std::string to, out;
  int64_t max_shard_mb = 0;
  bool overwrite = false;
};

void add_options(OptionTable& table, ConvertOptions& options) {
  add_model_options(table, options);
  table.take_bare_arguments("model");
  table.choice("to", {"gguf"}, options.to, "Write this container: gguf.");
  table.required_text("out", "FILE", options.out, "Write this file.");
  table.suggest("out", {"*.gguf"});
  table.integer(
      "max-shard-size", "MB", options.max_shard_mb, 0, int64_t{1} << 40,
      "Write files of at most this size (or of one tensor), in units of 10^6 bytes, which "
      "are named FILE-00001-of-00003.gguf and so on if there are several. 0 means one "
      "file.");
  table.flag("overwrite", options.overwrite, "Replace the file if it exists.");
}

/// Warns if the checkpoint rounds the inputs of modules, which a GGUF file cannot say.
void warn_of_rounded_inputs(const Source& source, const Model& model) {
  int64_t count = 0;
  for (const Module& m : model.modules()) count += source.input_rounding(m.name).format ? 1 : 0;
  if (count > 0)
    spdlog::warn(
        "{}: the inputs of {} are rounded, which a GGUF file does not say; llama.cpp rounds "
        "inputs in its own way",
        source.directory(), counted(count, "module"));
}

void run(const ConvertOptions& options) {
  if (options.to.empty()) throw UsageError("--to: expected gguf, the container to write");
  const auto registry = open_registry(options);
  const auto source = open_source(options.model, *registry);
  const auto model = registry->create_model(*source, options.model_type, options.strict);
  if (options.strict)
    check_extra_tensors(model->extra_tensors(), model->extra_note(), options.model, options);
  ConsoleObserver observer(quiet(options));
  const GgufSummary summary = write_gguf(*source, *model, options.out, options.overwrite, observer,
                                         options.max_shard_mb * 1'000'000);
  warn_of_rounded_inputs(*source, *model);
  warn_of_changes(summary, options.model);
  if (options.json)
    fmt::print("{}\n", to_text(to_json(summary)));
  else
    fmt::print("{}\nwritten to {}\n", summary_text(summary), files_text(summary));
}

}  // namespace

const Command kConvert{
    "convert", "writes an export, or a checkpoint, to a GGUF file",
    "convert MODEL --to gguf --out FILE.gguf",
    "The file is what llama.cpp reads. Codes and scales are carried over as they are: int4 becomes "
    "Q4_0, or Q4_1 with zero points; int5 becomes Q5_0 or Q5_1; int8 becomes Q8_0; mxfp4 becomes "
    "MXFP4 and nvfp4 NVFP4, all in groups of 32, of a multiple of 32, or of a whole row (NVFP4: "
    "16). "
    "Dense tensors stay in BF16, F16 or F32. A format without such a type is refused before the "
    "file "
    "is written.\n\n"
    "GGUF has scales in float16. A scale that is not exact in float16 is rounded, and so is scale "
    "x "
    "zero point in Q4_1 and Q5_1; the command then says how many were, and by how much. A run with "
    "--export gguf has float16 scales from the beginning.\n\n"
    "The families OLMoE, Mixtral, Qwen2-MoE, Qwen3-MoE, DeepSeek-MoE, DeepSeek-V2 and V3, gpt-oss, "
    "MiniMax-M2, GLM-4.5, Granite MoE and ERNIE 4.5 MoE can be written. An option of a model that "
    "llama.cpp does not have is an error. The file contains the tokenizer and the chat template of "
    "the folder.",
    prepare<ConvertOptions, add_options, run>};

}  // namespace aqhost
