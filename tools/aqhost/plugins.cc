#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "command.h"
#include "format_summary.h"

namespace aqhost {
namespace {

void add_options(po::options_description_easy_init add) { add_plugin_option(add); }

/// summarize() of a format with its defaults; a format that fails at it says how.
Json summary_of(const Registry& registry, const std::string& id) {
  try {
    return summarize(*registry.create_format(id, Json::object()));
  } catch (const Error& e) {
    return {{"error", e.what()}};
  }
}

void print(const Registry& registry) {
  const std::vector<PluginInfo>& plugins = registry.plugins();
  std::size_t width = 2;
  for (const PluginInfo& p : plugins) width = std::max(width, p.id.size());
  fmt::print("{:<{}}  {:<9}  {:<8}  {:<4}  {}\n", "id", width, "kind", "version", "abi",
             "description and path");
  for (const PluginInfo& p : plugins)
    if (p.refused.empty()) {
      fmt::print("{:<{}}  {:<9}  {:<8}  {:<4}  {}\n{:<{}}  {}\n", p.id, width, p.kind, p.version,
                 p.abi, p.description, "", width + 27, p.path);
      if (p.kind != "quantizer") continue;
      const Json summary = summary_of(registry, p.id);
      fmt::print(
          "{:<{}}  {}\n", "", width + 27,
          summary.contains("error") ? summary["error"].get<std::string>() : summary_text(summary));
    }
  for (const PluginInfo& p : plugins)
    if (!p.refused.empty()) fmt::print("refused  {}\n         {}\n", p.path, p.refused);
}

void run(const po::variables_map& options) {
  std::vector<std::filesystem::path> given;
  if (options.contains("plugin-dir"))
    for (const auto& folder : options["plugin-dir"].as<std::vector<std::string>>())
      given.emplace_back(folder);
  const auto folders = plugin_search_path(given);
  const Registry registry(folders);
  if (!wants_json(options)) {
    print(registry);
    return;
  }
  Json list = Json::array();
  for (const PluginInfo& p : registry.plugins()) {
    Json entry{{"path", p.path},       {"id", p.id},
               {"kind", p.kind},       {"name", p.name},
               {"version", p.version}, {"vendor", p.vendor},
               {"abi", p.abi},         {"description", p.description}};
    if (!p.aliases.empty()) entry["aliases"] = p.aliases;
    if (!p.refused.empty())
      entry["refused"] = p.refused;
    else if (p.kind == "quantizer")
      entry["format"] = summary_of(registry, p.id);
    list.push_back(std::move(entry));
  }
  // what plugins say of themselves may be no UTF-8
  fmt::print("{}\n", list.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

const Command kPlugins{"plugins", "lists the plugins found, and what was refused and why",
                       "  aqhost plugins [--plugin-dir DIR] [--json]", add_options, run};

}  // namespace aqhost
