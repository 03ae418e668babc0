#include "report/sections.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/counted.h"
#include "report/chart.h"

namespace aqhost {
namespace {

constexpr std::size_t kWorstModules = 10;

bool always(const ShownExport& /*shown*/) { return true; }

bool has_experts(const ShownExport& shown) { return !shown.report.units.experts.empty(); }

bool has_quality(const ShownExport& shown) {
  return shown.measured || !shown.report.units.refined.empty();
}

bool has_engines(const ShownExport& shown) { return !shown.report.engines.empty(); }

std::string number(double value) { return fmt::format("{:.4g}", value); }

std::string bits_text(const ModuleSum& sum) { return fmt::format("{:.3f}", sum.bits_per_weight()); }

std::string relative_text(const ModuleSum& sum) {
  return sum.rtn_loss > 0 ? percent(sum.relative_loss()) : "";
}

/// "s1" to "s6" for the formats, from few bits to many.
std::map<std::string, std::string> colors_of(const ReportSummary& summary) {
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [format, sum] : summary.formats)
    order.emplace_back(sum.bits_per_weight(), format);
  std::sort(order.begin(), order.end());
  std::map<std::string, std::string> colors;
  const std::size_t last = order.size() - 1;
  for (std::size_t i = 0; i < order.size(); i++)
    colors[order[i].second] = fmt::format("s{}", last == 0 ? 3 : 2 + i * 4 / last);
  return colors;
}

void draw_formats(Html& html, const ReportSummary& s) {
  if (s.layers == 0) return;
  const auto colors = colors_of(s);
  CellChart chart;
  chart.columns = {"layer", s.layers};
  HtmlTable table{{"part", "layer", "format", "bits"}, {}, 3};
  for (const auto& [part, sum] : s.parts) {
    if (s.by_part_and_layer.lower_bound({part, 0}) ==
        s.by_part_and_layer.upper_bound({part, s.layers}))
      continue;  // outside the layers
    chart.rows.push_back(part);
    for (int32_t layer = 0; layer < s.layers; layer++) {
      const auto found = s.by_part_and_layer.find({part, layer});
      if (found == s.by_part_and_layer.end()) {
        chart.colors.emplace_back();
        continue;
      }
      chart.colors.push_back(colors.at(found->second.main_format()));
      table.rows.push_back(
          {part, std::to_string(layer), found->second.main_format(), bits_text(found->second)});
    }
  }
  for (const auto& [format, sum] : s.formats)
    chart.legend.push_back({colors.at(format), fmt::format("{}, {} bits", format, bits_text(sum))});
  std::sort(chart.legend.begin(), chart.legend.end(),
            [](const LegendEntry& a, const LegendEntry& b) { return a.color < b.color; });
  draw(html,
       {"Formats by part and layer.",
        "A cell that stands out more has more bits. Where the modules of a cell differ, the format "
        "of "
        "most of its weights is shown. An empty cell is not quantized, or is not there.",
        table},
       chart);
}

/// One row for each part of the model.
HtmlTable parts_table(const ReportSummary& s) {
  HtmlTable table{{"part", "formats", "modules", "weights", "bits", "loss", "of rounding"}, {}, 2};
  for (const auto& [part, sum] : s.parts) {
    std::vector<std::string> formats;
    for (const auto& [format, weights] : sum.formats) formats.push_back(format);
    table.rows.push_back({part, fmt::format("{}", fmt::join(formats, ", ")),
                          with_commas(sum.modules), with_commas(sum.weights), bits_text(sum),
                          s.all.loss > 0 ? percent(sum.loss / s.all.loss) : "",
                          relative_text(sum)});
  }
  return table;
}

/// The losses of the modules of one layer in relation to rounding to nearest, in order.
std::vector<std::vector<double>> ratios_by_layer(const ShownExport& shown) {
  std::vector<std::vector<double>> ratios(static_cast<std::size_t>(shown.summary.layers));
  for (const auto& [name, m] : shown.report.units.modules)
    if (m.layer >= 0 && m.solve && m.solve->rtn_loss > 0)
      ratios[static_cast<std::size_t>(m.layer)].push_back(m.solve->loss / m.solve->rtn_loss);
  for (auto& of_layer : ratios) std::sort(of_layer.begin(), of_layer.end());
  return ratios;
}

/// The class of a cell in which a `share` of a layer's modules lies.
std::string share_color(double share) {
  constexpr std::array kSteps{0.02, 0.05, 0.1, 0.2, 0.4};
  const auto above = std::upper_bound(kSteps.begin(), kSteps.end(), share) - kSteps.begin();
  return fmt::format("s{}", 1 + above);
}

void draw_ratios(Html& html, const ShownExport& shown) {
  constexpr std::size_t kRows = 11;  // tenths, and above them what is no better than rounding
  const auto ratios = ratios_by_layer(shown);
  CellChart chart;
  chart.columns = {"layer", shown.summary.layers};
  chart.rows.emplace_back("100 % and more");
  for (std::size_t r = 1; r < kRows; r++)
    chart.rows.push_back(fmt::format("{} to {} %", 100 - 10 * r, 110 - 10 * r));
  chart.colors.resize(kRows * ratios.size());
  HtmlTable table{{"layer", "modules", "least", "median", "most", "all modules"}, {}, 1};
  for (std::size_t l = 0; l < ratios.size(); l++) {
    const auto& of_layer = ratios[l];
    if (of_layer.empty()) continue;
    std::array<std::size_t, kRows> counts{};
    for (const double ratio : of_layer)
      counts[kRows - 1 - std::min(static_cast<std::size_t>(ratio * 10), kRows - 1)]++;
    for (std::size_t r = 0; r < kRows; r++)
      if (counts[r] > 0)
        chart.colors[r * ratios.size() + l] =
            share_color(static_cast<double>(counts[r]) / static_cast<double>(of_layer.size()));
    table.rows.push_back({std::to_string(l), std::to_string(of_layer.size()),
                          percent(of_layer.front()), percent(of_layer[of_layer.size() / 2]),
                          percent(of_layer.back()), relative_text(shown.summary.by_layer[l])});
  }
  chart.legend = {{"s1", "few of the layer's modules"}, {"s6", "40 % of them or more"}};
  draw(html,
       {"Loss of each module, in percent of the loss of rounding it to nearest.",
        "Each column has the modules of a layer. A low place is good: at 40 %, GPTQ has avoided "
        "60 % of the loss.",
        table},
       chart);
}

void draw_loss_shares(Html& html, const ReportSummary& s) {
  BarChart chart;
  chart.x = {"layer", s.layers};
  chart.text = percent;
  HtmlTable table{{"layer", "loss", "share", "of rounding"}, {}, 1};
  BarChart::Series series{"c0", "", {}};
  for (std::size_t l = 0; l < s.by_layer.size(); l++) {
    const ModuleSum& sum = s.by_layer[l];
    series.values.push_back(sum.loss / s.all.loss);
    table.rows.push_back(
        {std::to_string(l), number(sum.loss), percent(series.values.back()), relative_text(sum)});
  }
  chart.series.push_back(std::move(series));
  draw(html, {"Share of each layer in the loss.", "All modules together have 100 %.", table},
       chart);
}

constexpr std::array<PageSection, 7> kSections{
    {{"bits", "Bits", always, write_bits},
     {"loss", "Loss", always, write_losses},
     {"experts", "Experts", has_experts, write_experts},
     {"original", "Against the original model", has_quality, write_quality},
     {"costs", "Time and memory", always, write_costs},
     {"engines", "Where it loads", has_engines, write_engines},
     {"origin", "How to repeat the run", always, write_origin}}};

}  // namespace

std::span<const PageSection> page_sections() { return kSections; }

std::string percent(double share) {
  const double value = 100 * share;
  return value > 0 && value < 0.95 ? fmt::format("{:.2g} %", value)
         : value < 9.95            ? fmt::format("{:.1f} %", value)
                                   : fmt::format("{:.0f} %", value);
}

std::string last_name(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/');
  if (end == path.npos) return path;
  const std::string name = path.substr(0, end + 1);
  return name.substr(name.rfind('/') + 1);
}

void write_bits(Html& html, const ShownExport& shown) {
  const ReportSummary& s = shown.summary;
  html.element(
      "p", fmt::format("The {} quantized modules have {} weights, which take {} bits each, scales "
                       "included.",
                       with_commas(s.all.modules), with_commas(s.all.weights), bits_text(s.all)));
  draw_formats(html, s);
  html.element("h3", "The parts of the model");
  write(html, parts_table(s));
}

void write_losses(Html& html, const ShownExport& shown) {
  const ReportSummary& s = shown.summary;
  if (s.all.loss <= 0) {
    html.element("p",
                 "No loss is known. The run did not calibrate the modules, so it has no Hessians.");
    return;
  }
  html.open("p");
  html.text(
      "The loss of a module is the sum over its rows of ½ d H dᵀ, where d is the difference "
      "between its weights and their quantized values, and H is the Hessian of its input. ");
  if (s.all.rtn_loss > 0)
    html.text(
        fmt::format("All modules together have {} of the loss that rounding to nearest has "
                    "under the same Hessians.",
                    percent(s.all.relative_loss())));
  html.close();
  if (s.layers > 0) {
    if (s.all.rtn_loss > 0) draw_ratios(html, shown);
    draw_loss_shares(html, s);
  }
  html.element("h3", "The modules with the largest losses");
  HtmlTable table{{"module", "format", "loss", "share", "of rounding", "tokens"}, {}, 2};
  for (const auto& [name, m] : worst_modules(shown.report.units, kWorstModules))
    table.rows.push_back(
        {name, format_of(*m), number(m->solve->loss), percent(m->solve->loss / s.all.loss),
         m->solve->rtn_loss > 0 ? percent(m->solve->loss / m->solve->rtn_loss) : "",
         with_commas(m->solve->tokens)});
  write(html, table);
}

}  // namespace aqhost
