#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/counted.h"
#include "base/progress.h"
#include "report/chart.h"
#include "report/sections.h"

namespace aqhost {
namespace {

constexpr std::size_t kStarvedRows = 12;

/// The routed experts of one layer, in order.
using ExpertRows = std::map<int32_t, std::vector<const ExpertReport*>>;

ExpertRows rows_of(const UnitReport& units) {
  ExpertRows rows;
  for (const ExpertReport& e : units.experts) rows[e.layer].push_back(&e);
  for (auto& [layer, experts] : rows)
    std::sort(experts.begin(), experts.end(),
              [](const auto* a, const auto* b) { return a->expert < b->expert; });
  return rows;
}

/// The class of an expert whose tokens are `relative` times the mean of its layer.
std::string coverage_color(double relative) {
  constexpr std::array kSteps{0.125, 0.25, 0.5, 1.0, 2.0, 4.0};
  return fmt::format("s{}",
                     std::upper_bound(kSteps.begin(), kSteps.end(), relative) - kSteps.begin());
}

void draw_coverage(Html& html, const ShownExport& shown) {
  const ExpertRows rows = rows_of(shown.report.units);
  CellChart chart;
  std::size_t columns = 0;
  for (const auto& [layer, experts] : rows) columns = std::max(columns, experts.size());
  chart.columns = {"expert", static_cast<int64_t>(columns)};
  chart.row_title = "layer";
  HtmlTable table{{"layer"}, {}, 1};
  for (std::size_t e = 0; e < columns; e++) table.header.push_back(std::to_string(e));
  for (const auto& [layer, experts] : rows) {
    chart.rows.push_back(std::to_string(layer));
    double sum = 0;
    for (const ExpertReport* e : experts) sum += static_cast<double>(e->tokens);
    const double mean = std::max(sum / static_cast<double>(experts.size()), 1.0);
    std::vector<std::string> numbers{std::to_string(layer)};
    for (const ExpertReport* e : experts) {
      chart.colors.push_back(coverage_color(static_cast<double>(e->tokens) / mean));
      chart.marked.push_back(e->starved);
      numbers.push_back(std::to_string(e->tokens));
    }
    chart.colors.resize(chart.rows.size() * columns);
    chart.marked.resize(chart.rows.size() * columns);
    table.rows.push_back(std::move(numbers));
  }
  chart.legend = {{"s0", "less than an eighth of the layer's mean"},
                  {"s1", "up to a quarter"},
                  {"s2", "up to half"},
                  {"s3", "up to the mean"},
                  {"s4", "up to twice the mean"},
                  {"s5", "up to four times"},
                  {"s6", "more"}};
  chart.mark_text = "starved";
  draw(html,
       {"Calibration tokens of each expert.",
        "A cell that stands out more received more tokens, in relation to the mean of its layer.",
        table},
       chart);
}

/// What the starved experts cost, in words.
std::string starved_text(const ShownExport& shown, int64_t starved, int64_t all) {
  const ReportSummary& s = shown.summary;
  std::string text = fmt::format(
      "{} of {} experts are starved: they received fewer tokens than they need, so the Hessian of "
      "all tokens of their layer was added to their own.",
      with_commas(starved), with_commas(all));
  const double loss = s.starved.loss + s.other_experts.loss;
  if (loss <= 0) return text;
  text += fmt::format(" They have {} of the weights of all experts, and {} of their loss.",
                      percent(static_cast<double>(s.starved.weights) /
                              static_cast<double>(s.starved.weights + s.other_experts.weights)),
                      percent(s.starved.loss / loss));
  if (s.starved.rtn_loss > 0 && s.other_experts.rtn_loss > 0)
    text += fmt::format(
        " Their loss is {} of that of rounding to nearest; for the other experts it is {}.",
        percent(s.starved.relative_loss()), percent(s.other_experts.relative_loss()));
  return text;
}

/// The starved experts with the fewest tokens.
HtmlTable starved_table(const ShownExport& shown) {
  std::vector<const ExpertReport*> starved;
  for (const ExpertReport& e : shown.report.units.experts)
    if (e.starved) starved.push_back(&e);
  std::stable_sort(starved.begin(), starved.end(),
                   [](const auto* a, const auto* b) { return a->tokens < b->tokens; });
  starved.resize(std::min(starved.size(), kStarvedRows));
  HtmlTable table{{"layer", "expert", "tokens", "needed", "loss", "of rounding"}, {}, 1};
  for (const ExpertReport* e : starved) {
    const auto found = shown.summary.by_expert.find({e->layer, e->expert});
    const ModuleSum sum = found == shown.summary.by_expert.end() ? ModuleSum() : found->second;
    table.rows.push_back({std::to_string(e->layer), std::to_string(e->expert),
                          with_commas(e->tokens), with_commas(e->needed),
                          sum.loss > 0 ? fmt::format("{:.4g}", sum.loss) : "",
                          sum.rtn_loss > 0 ? percent(sum.relative_loss()) : ""});
  }
  return table;
}

void draw_hidden_errors(Html& html, const Measurement& m) {
  if (m.layers.empty()) return;
  BarChart chart;
  chart.x = {"layer", static_cast<int64_t>(m.layers.size())};
  chart.text = percent;
  chart.series = {{"c7", "with all earlier layers", {}}, {"c0", "the layer alone", {}}};
  HtmlTable table{{"layer", "with all earlier layers", "the layer alone"}, {}, 1};
  for (std::size_t l = 0; l < m.layers.size(); l++) {
    chart.series[0].values.push_back(m.layers[l].total);
    chart.series[1].values.push_back(m.layers[l].own);
    table.rows.push_back({std::to_string(l), percent(m.layers[l].total), percent(m.layers[l].own)});
  }
  draw(
      html,
      {"Error of the hidden states behind each layer.",
       "The difference from the original model's, in relation to their norm, averaged over tokens.",
       table},
      chart);
}

std::string plain_number(double value) { return fmt::format("{:.3g}", value); }

void draw_refinement(Html& html, const UnitReport& units, int32_t layers) {
  if (units.refined.empty()) return;
  BarChart chart;
  chart.x = {"layer", layers};
  chart.text = plain_number;
  const std::vector<double> none(static_cast<std::size_t>(layers), -1);
  chart.series = {{"c7", "before", none}, {"c0", "after", none}};
  HtmlTable table{{"layer", "before", "after", "ratio"}, {}, 1};
  for (const Refinement& r : units.refined) {
    chart.series[0].values[static_cast<std::size_t>(r.layer)] = r.error_before;
    chart.series[1].values[static_cast<std::size_t>(r.layer)] = r.error_after;
    table.rows.push_back({std::to_string(r.layer), plain_number(r.error_before),
                          plain_number(r.error_after),
                          r.error_before > 0 ? percent(r.error_after / r.error_before) : ""});
  }
  draw(html,
       {"What learned rounding did.", "The mean squared error of each layer's output.", table},
       chart);
}

/// A station of a run: its colour, and what it does.
struct Station {
  const char* name;
  const char* color;
  const char* what;
};
constexpr std::array<Station, 10> kStations{
    {{"prepare", "c7", "checks the checkpoint and the folders"},
     {"tokenize", "c7", "reads the calibration files"},
     {"read", "c2", "waits for the weights of the next layer"},
     {"calibrate", "c0", "runs the layer and adds up Hessians"},
     {"reduce", "c4", "adds up the Hessians of all processes"},
     {"solve", "c1", "chooses codes and scales"},
     {"pack", "c6", "hands the codes over to the files"},
     {"share", "c4", "sends new weights to all processes"},
     {"refine", "c3", "moves codes by learned rounding"},
     {"write", "c5", "waits for the files of earlier layers"}}};

/// The stations of a run, in order. A station that is not known here is shown as well.
std::vector<Station> stations_of(const PhaseSeconds& seconds) {
  std::vector<Station> stations;
  const auto has = [&](const std::string& name) {
    return std::any_of(seconds.begin(), seconds.end(),
                       [&](const auto& phase) { return phase.first == name; });
  };
  for (const Station& station : kStations)
    if (has(station.name)) stations.push_back(station);
  for (const auto& [name, value] : seconds)
    if (std::none_of(kStations.begin(), kStations.end(),
                     [&](const Station& station) { return station.name == name; }))
      stations.push_back({name.c_str(), "c7", ""});
  return stations;
}

double seconds_of(const PhaseSeconds& seconds, const std::string& name) {
  for (const auto& [phase, value] : seconds)
    if (phase == name) return value;
  return 0;
}

void draw_layer_seconds(Html& html, const RunReport& report, const std::vector<Station>& stations) {
  if (report.units.layers.size() < 2) return;
  BarChart chart;
  chart.stacked = true;
  chart.text = format_duration;
  int32_t last = 0;
  for (const LayerSeconds& l : report.units.layers) last = std::max(last, l.layer);
  chart.x = {"layer", last + 1};
  HtmlTable table{{"layer"}, {}, 1};
  for (const LayerSeconds& l : report.units.layers) {
    table.rows.push_back({std::to_string(l.layer)});
    for (const Station& s : stations)
      table.rows.back().push_back(fmt::format("{:.3g}", seconds_of(l.seconds, s.name)));
  }
  for (const Station& s : stations) {
    table.header.push_back(std::string(s.name) + ", s");
    BarChart::Series series{s.color, s.name,
                            std::vector<double>(static_cast<std::size_t>(last) + 1)};
    for (const LayerSeconds& l : report.units.layers)
      series.values[static_cast<std::size_t>(l.layer)] = seconds_of(l.seconds, s.name);
    if (std::any_of(series.values.begin(), series.values.end(), [](double v) { return v > 0; }))
      chart.series.push_back(std::move(series));
  }
  draw(html,
       {"Time of each layer by station.",
        "The last column is what follows the last layer, such as lm_head.", table},
       chart);
}

void write_ranks(Html& html, const std::vector<RankReport>& ranks) {
  if (ranks.empty()) return;
  html.element("h3", "The processes");
  HtmlTable table{{"rank", "peak memory", "bytes sent", "exchanging and waiting"}, {}, 1};
  for (std::size_t i = 0; i < ranks.size(); i++) {
    int64_t bytes = 0;
    double seconds = 0;
    for (const RankReport::Traffic& t : ranks[i].traffic) {
      bytes += t.bytes;
      seconds += t.seconds;
    }
    table.rows.push_back({std::to_string(i), format_bytes(ranks[i].peak_memory_bytes),
                          format_bytes(bytes), format_duration(seconds)});
  }
  write(html, table);
}

}  // namespace

void write_experts(Html& html, const ShownExport& shown) {
  const UnitReport& units = shown.report.units;
  const int64_t starved = units.starved_experts();
  const auto all = static_cast<int64_t>(units.experts.size());
  html.element("p", starved > 0
                        ? starved_text(shown, starved, all)
                        : fmt::format("None of {} experts is starved: each received as many "
                                      "calibration tokens as it needs.",
                                      with_commas(all)));
  draw_coverage(html, shown);
  if (starved == 0) return;
  html.element("h3", "The starved experts with the fewest tokens");
  write(html, starved_table(shown));
}

void write_quality(Html& html, const ShownExport& shown) {
  if (const auto& m = shown.measured) {
    html.element("p", fmt::format("Measured on {}, in windows of {} tokens.", m->text, m->window));
    HtmlTable table{{"", "export"}, {}, 1};
    if (m->original_perplexity) table.header.emplace_back("original");
    table.rows.push_back({"perplexity", fmt::format("{:.4f}", m->perplexity)});
    if (m->original_perplexity)
      table.rows.back().push_back(fmt::format("{:.4f}", *m->original_perplexity));
    if (m->kl)
      table.rows.push_back(
          {"KL divergence from the original, in nats", fmt::format("{:.5f}", *m->kl)});
    if (m->top1) table.rows.push_back({"same most likely token", percent(*m->top1)});
    write(html, table);
    draw_hidden_errors(html, *m);
  }
  draw_refinement(html, shown.report.units, shown.summary.layers);
}

/// The bytes of a station; "" if they are not known.
std::string bytes_of(const PhaseBytes& memory, const std::string& name) {
  const auto found = memory.find(name);
  return found == memory.end() ? "" : format_bytes(found->second);
}

/// The time and the memory of each station.
HtmlTable cost_table(const RunReport& report, const std::vector<Station>& stations) {
  const double sum = report.total_seconds();
  HtmlTable table{{"station", "what it does", "time", "share", "memory"}, {}, 2};
  const bool on_gpu = !report.device_memory.empty();
  if (on_gpu) table.header.emplace_back("GPU memory");
  for (const Station& s : stations) {
    const double seconds = seconds_of(report.seconds, s.name);
    table.rows.push_back({s.name, s.what, format_duration(seconds),
                          sum > 0 ? percent(seconds / sum) : "", bytes_of(report.memory, s.name)});
    if (on_gpu) table.rows.back().push_back(bytes_of(report.device_memory, s.name));
  }
  return table;
}

void write_costs(Html& html, const ShownExport& shown) {
  const RunReport& report = shown.report;
  const double sum = report.total_seconds();
  std::string text =
      fmt::format("The run took {} on {}, and at most {} of memory", format_duration(sum),
                  report.device, format_bytes(report.peak_memory_bytes));
  if (report.peak_device_bytes)
    text += fmt::format(" and {} on the GPU", format_bytes(*report.peak_device_bytes));
  text += ".";
  if (report.resumed_layers > 0)
    text += fmt::format(
        " {} finished by an earlier start of the run; the memory is that of the "
        "last start.",
        counted(report.resumed_layers, "layer") + (report.resumed_layers == 1 ? " was" : " were"));
  html.element("p", text);
  const std::vector<Station> stations = stations_of(report.seconds);
  std::vector<Portion> portions;
  for (const Station& s : stations) {
    const double seconds = seconds_of(report.seconds, s.name);
    portions.push_back({s.color, fmt::format("{} {}", s.name, format_duration(seconds)), seconds});
  }
  draw_portions(html, {"Time by station.", "", {}}, portions);
  write(html, cost_table(report, stations));
  html.element("p", {{"class", "note"}},
               "The memory of a station is the most that the process was seen to hold in it. The "
               "largest of these numbers is exact; another may be too small, if the station held "
               "more for a while than it did at its end.");
  if (!report.device_memory.empty())
    html.element("p", {{"class", "note"}},
                 "The GPU memory of a station is the most that tensors took there at once while it "
                 "lasted, with the weights of the next layer, which are read at the same time.");
  draw_layer_seconds(html, report, stations);
  write_ranks(html, report.ranks);
}

}  // namespace aqhost
