#include "export/verify.h"

#include <fmt/format.h>

#include "base/counted.h"
#include "command.h"

namespace aqhost {
namespace {

void run_verify(const ModelOptions& options) {
  const auto registry = open_registry(options);
  const VerifySummary s = verify(options.model, *registry, options.model_type);
  check_extra_tensors(s.extra_tensors, s.extra_note, options.model, options);
  if (options.json) {
    fmt::print("{}\n", to_text(Json{{"ok", true},
                                    {"family", s.model_type},
                                    {"tensors", s.tensors},
                                    {"modules", s.modules},
                                    {"weights", s.weights},
                                    {"bits_per_weight", s.bits_per_weight},
                                    {"formats", s.formats},
                                    {"extra_tensors", s.extra_tensors}}));
    return;
  }
  fmt::print("ok: {}, {} tensors, {} quantized modules with {} weights in {:.3f} bits each\n",
             s.model_type, s.tensors, s.modules, with_commas(s.weights), s.bits_per_weight);
  for (const auto& [format, modules] : s.formats)
    fmt::print("  {:<8} {} modules\n", format, modules);
}

}  // namespace

const Command kVerify{
    "verify", "reads an export back and checks every tensor of it", "verify --model OUT [--json]",
    "The command fails if a tensor is missing, has the wrong shape or contains values that are not "
    "finite. Otherwise it prints how many modules have which format.",
    prepare<ModelOptions, add_model_options, run_verify>};

}  // namespace aqhost
