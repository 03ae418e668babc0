#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "base/error.h"
#include "command.h"
#include "conformance/rules.h"
#include "format_summary.h"

namespace aqhost {
namespace {

struct PluginsOptions : PluginOptions {
  std::string check, model;
};

void add_options(OptionTable& table, PluginsOptions& options) {
  add_plugin_options(table, options);
  table.text("check", "FILE", options.check,
             "Check whether this plugin follows the rules of the SDK's headers.");
  table.suggest("check", {"*.so"});
  table.text("model", "DIR", options.model,
             "Let the plugin that is checked describe this checkpoint, which may be a small one.");
}

/// summarize() of a format with its default options, or the error of a format that fails.
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
      fmt::print("{:<{}}  {:<9}  {:<8}  {:<4}  {}\n{:<{}}  {}\n{:<{}}  sha256 {}\n", p.id, width,
                 p.kind, p.version, p.abi, p.description, "", width + 27, p.path, "", width + 27,
                 p.sha256);
      if (p.kind != "quantizer") continue;
      const Json summary = summary_of(registry, p.id);
      fmt::print(
          "{:<{}}  {}\n", "", width + 27,
          summary.contains("error") ? summary["error"].get<std::string>() : summary_text(summary));
    }
  for (const PluginInfo& p : plugins)
    if (!p.refused.empty()) fmt::print("refused  {}\n         {}\n", p.path, p.refused);
}

void check(const PluginsOptions& options) {
  std::optional<std::filesystem::path> model;
  if (!options.model.empty()) model = options.model;
  const std::vector<Verdict> verdicts = check_plugin(options.check, model);
  Json list = Json::array();
  for (const Verdict& v : verdicts) {
    list.push_back({{"subject", v.subject}, {"rule", v.rule}, {"result", to_word(v.result)}});
    if (!v.detail.empty()) list.back()["detail"] = v.detail;
    if (!options.json) fmt::print("{}\n", to_line(v));
  }
  if (options.json) fmt::print("{}\n", to_text(list));
  std::fflush(stdout);
  if (!all_hold(verdicts)) fail("{} breaks a rule, see above", options.check);
}

void run(const PluginsOptions& options) {
  if (!options.check.empty()) return check(options);
  if (!options.model.empty()) throw UsageError("--model goes with --check");
  const auto registry = scan_plugins(options);
  if (registry->plugins().empty())
    spdlog::warn("no plugin was found in {}; give --plugin-dir", registry->folders());
  if (!options.json) {
    if (!registry->plugins().empty()) print(*registry);
    return;
  }
  Json list = Json::array();
  for (const PluginInfo& p : registry->plugins()) {
    Json entry{{"path", p.path},       {"id", p.id},
               {"kind", p.kind},       {"name", p.name},
               {"version", p.version}, {"vendor", p.vendor},
               {"abi", p.abi},         {"description", p.description},
               {"sha256", p.sha256}};
    if (!p.aliases.empty()) entry["aliases"] = p.aliases;
    if (!p.refused.empty())
      entry["refused"] = p.refused;
    else if (p.kind == "quantizer")
      entry["format"] = summary_of(*registry, p.id);
    list.push_back(std::move(entry));
  }
  fmt::print("{}\n", to_text(list));
}

}  // namespace

const Command kPlugins{
    "plugins", "lists the plugins that were found, and why any were refused",
    "plugins [--plugin-dir DIR] [--json]\nplugins --check FILE [--model DIR]",
    "Of a format, the list also shows how far it is off when it rounds normally distributed "
    "numbers.",
    prepare<PluginsOptions, add_options, run>};

}  // namespace aqhost
