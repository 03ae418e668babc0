#include "report/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace aqhost {
namespace {

/// Pictures are stretched to the width of the page, so they contain no text; labels are HTML.
/// Lines keep their width (class "line" of the style sheet).
constexpr double kHeight = 100;  // of a bar chart, in its own units
constexpr int kTicks = 4;        // intervals of the axis of values
constexpr int64_t kLabels = 8;   // at most, along an axis
constexpr int64_t kWide = 96;    // more columns than this have no room for lines between them

/// How many places lie between two labels of an axis: 1, 2 or 5 times a power of ten.
int64_t label_step(int64_t size) {
  for (int64_t power = 1;; power *= 10)
    for (const int64_t factor : {1, 2, 5})
      if ((size + factor * power - 1) / (factor * power) <= kLabels) return factor * power;
}

void begin_figure(Html& html, const Caption& caption) {
  html.open("figure").open("figcaption");
  html.element("strong", caption.title).text(" ").element("span", caption.description);
  html.close();
}

void end_figure(Html& html, const Caption& caption) {
  if (!caption.numbers.rows.empty()) {
    html.open("details").element("summary", "The numbers as a table");
    write(html, caption.numbers);
    html.close();
  }
  html.close();
}

/// Opens the picture, which is `width` x `height` units large and is shown `pixels` high.
void open_svg(Html& html, const Caption& caption, double width, double height, int64_t pixels) {
  html.open("svg", {{"role", "img"},
                    {"aria-label", caption.title},
                    {"viewBox", fmt::format("0 0 {:g} {:g}", width, height)},
                    {"preserveAspectRatio", "none"},
                    {"style", fmt::format("height:{}px", pixels)}});
  html.element("title", caption.title).element("desc", caption.description);
}

void path(Html& html, const std::string& color, const std::string& d) {
  if (!d.empty()) html.open("path", {{"class", color}, {"d", d}}).close();
}

void draw_axis(Html& html, const Axis& axis) {
  const int64_t step = label_step(axis.size);
  html.open("div", {{"class", step == 1 ? "x each" : "x"}, {"aria-hidden", "true"}});
  for (int64_t i = 0; i < axis.size; i += step)
    html.element("span", {{"style", fmt::format("flex:{} 1 0", std::min(step, axis.size - i))}},
                 std::to_string(axis.first + i));
  html.close();
  html.element("div", {{"class", "xt"}}, axis.title);
}

void draw_legend(Html& html, const std::vector<LegendEntry>& entries) {
  if (entries.empty()) return;
  html.open("ul", {{"class", "legend"}});
  for (const LegendEntry& entry : entries)
    html.open("li").element("i", {{"class", entry.color}}, "").text(entry.text).close();
  html.close();
}

double largest(const BarChart& chart) {
  double most = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(chart.x.size); i++) {
    double sum = 0;
    for (const BarChart::Series& s : chart.series) {
      const double value = std::max(0.0, s.values[i]);
      sum = chart.stacked ? sum + value : std::max(sum, value);
    }
    most = std::max(most, sum);
  }
  return most;
}

void draw_bars(Html& html, const BarChart& chart, double top) {
  std::vector<double> floor(static_cast<std::size_t>(chart.x.size), 0.0);
  for (std::size_t s = 0; s < chart.series.size(); s++) {
    const BarChart::Series& series = chart.series[s];
    // bars of a later series are narrower, so that those behind them stay visible
    const double width = chart.stacked ? 0.8 : 0.8 - 0.3 * static_cast<double>(s);
    html.open("g", {{"class", series.color}});
    for (std::size_t i = 0; i < floor.size(); i++) {
      const double value = series.values[i];
      if (value < 0 || (value == 0 && chart.stacked)) continue;
      const double height = std::min(value / top * kHeight, kHeight - floor[i]);
      html.open("rect", {{"x", fmt::format("{:.2f}", static_cast<double>(i) + (1 - width) / 2)},
                         {"y", fmt::format("{:.2f}", kHeight - floor[i] - height)},
                         {"width", fmt::format("{:.2f}", width)},
                         {"height", fmt::format("{:.2f}", height)}});
      html.element("title", fmt::format("{} {}: {} {}", chart.x.title,
                                        chart.x.first + static_cast<int64_t>(i), series.name,
                                        chart.text(value)));
      html.close();
      if (chart.stacked) floor[i] += height;
    }
    html.close();
  }
}

/// Lines between the cells, while they are large enough for it to look well.
std::string lines_between(int64_t rows, int64_t columns) {
  std::string d;
  if (columns > kWide) return d;
  for (int64_t r = 1; r < rows; r++) d += fmt::format("M0 {}h{}", r, columns);
  for (int64_t c = 1; c < columns; c++) d += fmt::format("M{} 0v{}", c, rows);
  return d;
}

/// The height of a row of cells in pixels.
int64_t row_height(std::size_t rows) { return rows <= 12 ? 20 : rows <= 32 ? 14 : 8; }

}  // namespace

double round_up(double value) {
  if (!(value > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 4.0, 8.0})
    if (value <= factor * power * (1 + 1e-9)) return factor * power;
  return 10 * power;
}

void draw(Html& html, const Caption& caption, const BarChart& chart) {
  const double top = chart.top > 0 ? chart.top : round_up(largest(chart));
  begin_figure(html, caption);
  html.open("div", {{"class", "plot"}});
  html.open("div", {{"class", "y ticks"}, {"aria-hidden", "true"}});
  for (int i = kTicks; i >= 0; i--) html.element("span", chart.text(top * i / kTicks));
  html.close();
  open_svg(html, caption, static_cast<double>(chart.x.size), kHeight, 180);
  std::string grid;
  for (int i = 0; i <= kTicks; i++)
    grid += fmt::format("M0 {:g}h{}", kHeight * i / kTicks, chart.x.size);
  path(html, "line", grid);
  draw_bars(html, chart, top);
  html.close();
  draw_axis(html, chart.x);
  html.close();
  std::vector<LegendEntry> legend;
  if (chart.series.size() > 1)
    for (const BarChart::Series& series : chart.series)
      legend.push_back({series.color, series.name});
  draw_legend(html, legend);
  end_figure(html, caption);
}

void draw(Html& html, const Caption& caption, const CellChart& chart) {
  const auto rows = static_cast<int64_t>(chart.rows.size());
  const int64_t columns = chart.columns.size;
  begin_figure(html, caption);
  html.open("div", {{"class", "plot"}});
  const int64_t step = rows <= 32 ? 1 : label_step(rows);
  html.open("div", {{"class", step == 1 ? "y rows each" : "y rows"}, {"aria-hidden", "true"}});
  for (int64_t r = 0; r < rows; r += step)
    html.element("span", {{"style", fmt::format("flex:{} 1 0", std::min(step, rows - r))}},
                 chart.rows[static_cast<std::size_t>(r)]);
  html.close();
  open_svg(html, caption, static_cast<double>(columns), static_cast<double>(rows),
           rows * row_height(chart.rows.size()));
  std::map<std::string, std::string> cells;  // by colour; neighbours of one colour are one piece
  std::string crosses;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0, end = 0; c < columns; c = end) {
      const auto at = [&](int64_t column) {
        return static_cast<std::size_t>(r * columns + column);
      };
      const std::string& color = chart.colors[at(c)];
      for (end = c; end < columns && chart.colors[at(end)] == color; end++)
        if (!chart.marked.empty() && chart.marked[at(end)])
          crosses += fmt::format("M{} {}l1 1m-1 0l1-1", end, r);
      if (!color.empty()) cells[color] += fmt::format("M{} {}h{}v1h-{}z", c, r, end - c, end - c);
    }
  for (const auto& [color, d] : cells) path(html, color, d);
  path(html, "gap", lines_between(rows, columns));
  path(html, columns > kWide ? "cross fine" : "cross", crosses);
  html.close();
  html.element("div", {{"class", "yt"}}, chart.row_title);
  draw_axis(html, chart.columns);
  html.close();
  std::vector<LegendEntry> legend = chart.legend;
  if (!crosses.empty()) legend.push_back({"mark", chart.mark_text});
  draw_legend(html, legend);
  end_figure(html, caption);
}

void draw_portions(Html& html, const Caption& caption, const std::vector<Portion>& portions) {
  double sum = 0;
  for (const Portion& portion : portions) sum += portion.value;
  begin_figure(html, caption);
  open_svg(html, caption, kHeight, 1, 20);
  double x = 0;
  std::vector<LegendEntry> legend;
  for (const Portion& portion : portions) {
    const double width = sum > 0 ? portion.value / sum * kHeight : 0;
    html.open("rect", {{"class", portion.color},
                       {"x", fmt::format("{:.3f}", x)},
                       {"y", "0"},
                       {"width", fmt::format("{:.3f}", width)},
                       {"height", "1"}});
    html.element("title", portion.text).close();
    x += width;
    legend.push_back({portion.color, portion.text});
  }
  html.close();
  draw_legend(html, legend);
  end_figure(html, caption);
}

}  // namespace aqhost
