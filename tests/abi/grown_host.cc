// The host's own plugin layer, compiled from headers that have grown (grow.py):
//   grown_host PLUGINS MODEL...
// loads every plugin of the folder, and makes every format and the adapter of every checkpoint.
#include <fmt/format.h>

#include "base/error.h"
#include "checkpoint/reader.h"
#include "plugin/registry.h"

namespace aqhost {
namespace {

void run(const std::filesystem::path& plugins, const std::vector<std::string>& models) {
  static_assert(sizeof(aq_descriptor::later) == 8, "these headers are today's");
  const Registry registry({plugins}, {.trust = true});
  for (const PluginInfo& info : registry.plugins())
    if (!info.refused.empty()) fmt::print("refused {}: {}\n", info.path, info.refused);
  for (const std::string& id : registry.format_ids()) {
    const auto format = registry.create_format(id, Json::object());
    fmt::print("format {}: {} bits, first {}\n", id, format->desc().element_bits,
               format->packed(64, 256).front().name);
  }
  for (const std::string& folder : models) {
    const Reader reader(folder);
    const auto model = registry.create_model(reader, "auto");
    fmt::print("model {}: {} layers, {} modules\n", model->id(), model->desc().n_layers,
               model->modules().size());
  }
}

}  // namespace
}  // namespace aqhost

int main(int argc, char** argv) try {
  if (argc < 2) return 2;
  aqhost::run(argv[1], {argv + 2, argv + argc});
  return 0;
} catch (const std::exception& e) {
  fmt::print(stderr, "{}\n", e.what());
  return 1;
}
