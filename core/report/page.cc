#include "report/page.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "base/counted.h"
#include "base/file.h"
#include "base/progress.h"
#include "report/html.h"
#include "report/sections.h"
#include "report/style.h"

namespace aqhost {
namespace {

/// "int4 g128 (98 %), int8 g128 (2.1 %)": the formats and their shares of the quantized weights.
std::string formats_text(const ReportSummary& s) {
  std::vector<std::pair<int64_t, std::string>> order;
  for (const auto& [format, sum] : s.formats) order.emplace_back(-sum.weights, format);
  std::sort(order.begin(), order.end());
  if (order.size() == 1) return order.front().second;
  std::vector<std::string> texts;
  for (const auto& [weights, format] : order)
    texts.push_back(
        fmt::format("{} ({})", format,
                    percent(static_cast<double>(-weights) / static_cast<double>(s.all.weights))));
  return fmt::format("{}", fmt::join(texts, ", "));
}

/// "by GPTQ", "by rounding to nearest", or "by GPTQ and by rounding to nearest".
std::string algorithms_text(const RunReport& report) {
  bool gptq = false, rtn = false;
  for (const auto& [name, m] : report.units.modules) (m.algorithm == "gptq" ? gptq : rtn) = true;
  return gptq && rtn ? "by GPTQ and by rounding to nearest"
         : gptq      ? "by GPTQ"
                     : "by rounding to nearest";
}

/// What was done, in one sentence.
std::string lead(const ShownExport& shown) {
  const RunReport& report = shown.report;
  const ReportSummary& s = shown.summary;
  std::string text = fmt::format("aqhost quantized {}, a model of family {} with {}",
                                 report.setup.model, report.model_type, counted(s.layers, "layer"));
  if (s.experts > 0) text += fmt::format(" of up to {}", counted(s.experts, "expert"));
  text += fmt::format(", {} to {}", algorithms_text(report), formats_text(s));
  if (const auto& c = report.calibration)
    text += fmt::format(", after it had calibrated on {} of {} tokens",
                        counted(c->windows, "window"), c->seqlen);
  if (!report.units.refined.empty()) text += ", and refined the result by learned rounding";
  return text + fmt::format("; {} became {}.", format_bytes(report.setup.original_bytes),
                            format_bytes(report.bytes));
}

struct KeyFigure {
  std::string label, value, note;
};

std::vector<KeyFigure> key_figures(const ShownExport& shown) {
  const RunReport& report = shown.report;
  const ReportSummary& s = shown.summary;
  std::vector<KeyFigure> tiles;
  tiles.push_back(
      {"Bits per weight", fmt::format("{:.3f}", report.bits_per_weight), "with scales"});
  const double before = static_cast<double>(report.setup.original_bytes);
  tiles.push_back(
      {"Size", format_bytes(report.bytes),
       before > 0 ? fmt::format("{} of {}", percent(static_cast<double>(report.bytes) / before),
                                format_bytes(report.setup.original_bytes))
                  : ""});
  if (const auto& m = shown.measured) {
    tiles.push_back({"Perplexity", fmt::format("{:.3f}", m->perplexity),
                     m->original_perplexity
                         ? fmt::format("{:.3f} of the original", *m->original_perplexity)
                         : ""});
    if (m->kl) tiles.push_back({"KL divergence", fmt::format("{:.4f}", *m->kl), "nats per token"});
  }
  if (s.all.rtn_loss > 0)
    tiles.push_back({"Loss", percent(s.all.relative_loss()), "of rounding to nearest"});
  if (!report.units.experts.empty())
    tiles.push_back(
        {"Starved experts", with_commas(report.units.starved_experts()),
         fmt::format("of {}", with_commas(static_cast<int64_t>(report.units.experts.size())))});
  tiles.push_back({"Time", format_duration(report.total_seconds()), "on " + report.device});
  tiles.push_back({"Peak memory", format_bytes(report.peak_memory_bytes), "of the process"});
  return tiles;
}

void write_tiles(Html& html, const std::vector<KeyFigure>& tiles) {
  const bool fours = tiles.size() == 4 || tiles.size() > 6;  // columns, where there is room
  html.open("dl", {{"class", fours ? "tiles four" : "tiles"}});
  for (const KeyFigure& tile : tiles) {
    html.open("div").element("dt", tile.label).open("dd").text(tile.value);
    html.element("small", tile.note);
    html.close().close();
  }
  html.close();
}

/// The figures of several exports, one row for each. A column in which nothing is known is left
/// out.
void write_comparison(Html& html, const std::vector<ShownExport>& all) {
  std::vector<std::string> labels;
  std::vector<std::map<std::string, std::string>> values;
  for (const ShownExport& shown : all) {
    std::map<std::string, std::string>& row = values.emplace_back();
    std::vector<KeyFigure> tiles = key_figures(shown);
    if (shown.measured && shown.measured->top1)
      tiles.push_back({"Same top token", percent(*shown.measured->top1), ""});
    for (KeyFigure& tile : tiles) {
      if (std::find(labels.begin(), labels.end(), tile.label) == labels.end())
        labels.push_back(tile.label);
      row[tile.label] = std::move(tile.value);
    }
  }
  HtmlTable table{{"export"}, {}, 1};
  table.header.insert(table.header.end(), labels.begin(), labels.end());
  for (std::size_t i = 0; i < all.size(); i++) {
    table.rows.push_back({all[i].label});
    for (const std::string& label : labels) table.rows.back().push_back(values[i][label]);
  }
  write(html, table);
}

void write_header(Html& html, const std::vector<ShownExport>& all, const std::string& title) {
  html.open("header").element("p", {{"class", "kicker"}}, "Quantization report");
  html.element("h1", title);
  for (const ShownExport& shown : all) {
    if (all.size() > 1) html.element("h3", shown.label);
    html.element("p", {{"class", "lead"}}, lead(shown));
  }
  if (all.size() == 1)
    write_tiles(html, key_figures(all.front()));
  else
    write_comparison(html, all);
  html.open("nav");
  for (const PageSection& section : page_sections())
    if (std::any_of(all.begin(), all.end(), section.applies))
      html.element("a", {{"href", fmt::format("#{}", section.id)}}, section.heading);
  html.close().close();
}

/// The section for each export, beside each other if there is room.
void write_section(Html& html, const std::vector<ShownExport>& all, const PageSection& section) {
  if (std::none_of(all.begin(), all.end(), section.applies)) return;
  html.open("section", {{"id", section.id}}).element("h2", section.heading);
  if (all.size() > 1) html.open("div", {{"class", "side"}});
  for (const ShownExport& shown : all) {
    if (all.size() > 1) html.open("div").element("h3", shown.label);
    if (section.applies(shown)) section.write(html, shown);
    if (all.size() > 1) html.close();
  }
  if (all.size() > 1) html.close();
  html.close();
}

/// "olmoe-tiny, int4 g128"; of several exports, what they are of.
std::string title_of(const std::vector<ShownExport>& all) {
  std::vector<std::string> models;
  for (const ShownExport& shown : all)
    if (const std::string name = last_name(shown.report.setup.model);
        std::find(models.begin(), models.end(), name) == models.end())
      models.push_back(name);
  const std::string names = fmt::format("{}", fmt::join(models, ", "));
  if (all.size() > 1) return fmt::format("{}, {} exports", names, all.size());
  return fmt::format("{} in {}", names, all.front().summary.all.main_format());
}

}  // namespace

std::string report_page(const std::vector<ReportedExport>& exports) {
  std::vector<ShownExport> all;
  for (const ReportedExport& e : exports)
    all.push_back({e.label, e.report, summarize(e.report), e.measured});
  const std::string title = title_of(all);
  Html html;
  html.raw("<!DOCTYPE html>\n").open("html", {{"lang", "en"}}).open("head");
  html.single("meta", {{"charset", "utf-8"}});
  html.single("meta", {{"name", "viewport"}, {"content", "width=device-width, initial-scale=1"}});
  html.single("meta", {{"name", "generator"}, {"content", "aqhost"}});
  html.element("title", title);
  html.open("style").raw(kPageStyle).close();
  html.close().open("body").open("main");
  write_header(html, all, title);
  for (const PageSection& section : page_sections()) write_section(html, all, section);
  html.open("footer").element(
      "p", {{"class", "note"}},
      "Every figure of every module is in the quantization_report.json of the export.");
  html.close().close().close().close();
  return html.str() + "\n";
}

bool is_report_page(const std::filesystem::path& file) {
  constexpr std::string_view kGenerator = "<meta name=\"generator\" content=\"aqhost\">";
  std::error_code ignored;
  return std::filesystem::is_regular_file(file, ignored) &&
         read_file(file).find(kGenerator) != std::string::npos;
}

std::string report_page(const Json& report, const std::string& file) {
  return report_page({{"", parse_run_report(Field(report, file))}});
}

}  // namespace aqhost
