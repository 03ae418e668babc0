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

void add_options(po::options_description_easy_init add) {
  add_plugin_options(add);
  add("check", po::value<std::string>(), "try the rules of the SDK's headers on this plugin")(
      "model", po::value<std::string>(),
      "with --check: a checkpoint of the family, small or whole, to try an adapter on");
}

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

void check(const po::variables_map& options) {
  std::optional<std::filesystem::path> model;
  if (options.contains("model")) model = required(options, "model");
  const std::vector<Verdict> verdicts = check_plugin(required(options, "check"), model);
  Json list = Json::array();
  for (const Verdict& v : verdicts) {
    list.push_back({{"subject", v.subject}, {"rule", v.rule}, {"result", to_word(v.result)}});
    if (!v.detail.empty()) list.back()["detail"] = v.detail;
    if (!wants_json(options)) fmt::print("{}\n", to_line(v));
  }
  if (wants_json(options)) fmt::print("{}\n", to_text(list));
  std::fflush(stdout);
  if (!all_hold(verdicts)) fail("{} breaks a rule, see above", options["check"].as<std::string>());
}

void run(const po::variables_map& options) {
  if (options.contains("check")) return check(options);
  if (options.contains("model")) throw UsageError("--model goes with --check");
  const auto registry = scan_plugins(options);
  if (registry->plugins().empty())
    spdlog::warn("no plugin was found in {}; give --plugin-dir", registry->folders());
  if (!wants_json(options)) {
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

const Command kPlugins{"plugins", "lists the plugins found, and what was refused and why",
                       "  aqhost plugins [--plugin-dir DIR] [--json]\n"
                       "  aqhost plugins --check FILE [--model DIR]",
                       add_options, run};

}  // namespace aqhost
