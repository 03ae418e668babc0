#include "export/verify.h"

#include <fmt/format.h>

#include "command.h"

namespace aqhost {
namespace {

void add_options(po::options_description_easy_init add) {
  add_model_options(add);
  add_plugin_options(add);
}

void run(const po::variables_map& options) {
  const std::string directory = required(options, "model");
  const auto registry = open_registry(options);
  const VerifySummary s = verify(directory, *registry, options["model-type"].as<std::string>());
  check_extra_tensors(s.extra_tensors, s.extra_note, directory, options);
  if (wants_json(options)) {
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

const Command kVerify{"verify", "reads an export back and checks every tensor of it",
                      "  aqhost verify --model OUT [--json]", add_options, run};

}  // namespace aqhost
