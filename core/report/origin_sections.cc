#include <fmt/format.h>

#include <algorithm>

#include "base/counted.h"
#include "base/shell.h"
#include "report/sections.h"

namespace aqhost {
namespace {

/// Whether the engine loads the export, in words, and the class of their colour.
std::pair<std::string, const char*> verdict(const EngineReport& e) {
  if (!e.loads) return {"does not load it", "no"};
  if (!e.right) return {"loads it and gives wrong answers", "no"};
  return {e.gguf ? "loads the GGUF file made of it" : "loads it", "yes"};
}

void write_calibration(Html& html, const CalibrationReport& c) {
  html.element("h3", "Calibration");
  std::string text =
      fmt::format("{} of {} tokens: {} of text and {} of random tokens, with the seed {}.",
                  counted(c.windows, "window"), c.seqlen, c.windows - c.random_windows,
                  c.random_windows, c.seed);
  if (const auto& b = c.balance)
    text += fmt::format(
        " The windows of text were chosen from {} so that they use the experts evenly; the spread "
        "of the tokens fell from {:.3f} to {:.3f}.",
        b->pool, b->spread_before, b->spread_after);
  html.element("p", text);
  HtmlTable table{{"file", "weight", "windows", "of", "documents", "tokens", "not used"}, {}, 1};
  for (const CalibrationReport::File& f : c.files)
    table.rows.push_back({f.file, fmt::format("{:g}", f.weight), with_commas(f.windows),
                          with_commas(f.available), with_commas(f.documents), with_commas(f.tokens),
                          with_commas(f.unused_tokens)});
  write(html, table);
}

/// Appends the values of a JSON object, and of those in it, by their paths.
void flatten(const Json& json, const std::string& path, HtmlTable& table) {
  if (json.is_object()) {
    for (const auto& [key, value] : json.items())
      flatten(value, path.empty() ? key : path + " / " + key, table);
    return;
  }
  table.rows.push_back({path, json.is_string() ? json.get<std::string>() : to_text(json)});
}

}  // namespace

void write_engines(Html& html, const ShownExport& shown) {
  for (const EngineReport& e : shown.report.engines) {
    const auto [text, color] = verdict(e);
    html.open("div", {{"class", "engine"}});
    html.open("p").element("strong", e.name + " " + e.version).text(" ");
    html.element("span", {{"class", color}}, text);
    if (!e.run)
      html.element("span", {{"class", "note"}}, " (known from its source; it was not run)");
    html.close();
    if (!e.problems.empty() || !e.notes.empty() || !e.remedy.empty()) {
      html.open("ul");
      for (const std::string& problem : e.problems) html.element("li", problem);
      if (!e.remedy.empty()) html.element("li", e.remedy);
      for (const std::string& note : e.notes) html.element("li", note);
      html.close();
    }
    html.close();
  }
}

void write_origin(Html& html, const ShownExport& shown) {
  const RunSetup& setup = shown.report.setup;
  if (const auto& c = shown.report.calibration) write_calibration(html, *c);
  if (!setup.command.empty()) {
    std::string command = "aqhost";
    for (const std::string& argument : setup.command) command += " " + shell_quoted(argument);
    html.element("h3", "Command");
    html.element("pre", command);
  }
  html.element("h3", "Recipe");
  if (setup.recipe_file.empty())
    html.element("p", "There was none: modules become int4 in groups of 128.");
  else
    html.element("p", {{"class", "note"}}, setup.recipe_file).element("pre", setup.recipe);
  HtmlTable table{{"key", "value"}, {}, 2};
  flatten(setup.identity, "", table);
  if (table.rows.empty()) return;
  html.element("p",
               "Together with the plan of the modules, which the recipe gives, these values decide "
               "about every byte of the export.");
  html.open("details").element("summary", "What identifies the run");
  write(html, table);
  html.close();
}

}  // namespace aqhost
