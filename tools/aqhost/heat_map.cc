#include "heat_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/html.h"

namespace aqhost {
namespace {

constexpr int kCellWidth = 80, kCellHeight = 20, kMargin = 10, kTitleHeight = 30, kLetterWidth = 8;

/// From nearly white (0) to dark blue (1).
std::string colour(double share) {
  const auto mix = [&](int light, int dark) {
    return static_cast<int>(std::lround(light + share * (dark - light)));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(0xf0, 0x10), mix(0xf5, 0x3a), mix(0xfa, 0x6e));
}

/// The room that the longest of these texts needs.
int width_of(const std::vector<std::string>& texts) {
  std::size_t longest = 0;
  for (const std::string& text : texts) longest = std::max(longest, text.size());
  return kLetterWidth * static_cast<int>(longest);
}

std::string text_at(int x, int y, const std::string& anchor, const std::string& fill,
                    const std::string& text) {
  return fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" fill=\"{}\">{}</text>\n", x, y,
                     anchor, fill, escape_html(text));
}

}  // namespace

std::string to_svg(const HeatMap& map) {
  const int cell_width = std::max(kCellWidth, width_of(map.columns) + kMargin);
  const int left = 2 * kMargin + width_of(map.rows), top = kMargin + kTitleHeight + kCellHeight;
  const int width = std::max(left + cell_width * static_cast<int>(map.columns.size()),
                             kMargin + width_of({map.title})) +
                    kMargin,
            height = top + kCellHeight * static_cast<int>(map.rows.size()) + kMargin;
  double least = INFINITY, most = -INFINITY;
  for (const HeatMap::Cell& cell : map.cells) {
    least = std::min(least, cell.value);
    most = std::max(most, cell.value);
  }
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-labelledby=\"title desc\" "
      "viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<title id=\"title\">{2}</title>\n<desc id=\"desc\">{3}</desc>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height, escape_html(map.title), escape_html(map.description));
  svg += text_at(kMargin, kMargin + 14, "start", "black", map.title);
  for (std::size_t c = 0; c < map.columns.size(); c++)
    svg += text_at(left + cell_width * static_cast<int>(c) + cell_width / 2, top - 6, "middle",
                   "black", map.columns[c]);
  for (std::size_t r = 0; r < map.rows.size(); r++)
    svg += text_at(left - kMargin, top + kCellHeight * static_cast<int>(r) + 14, "end", "black",
                   map.rows[r]);
  for (const HeatMap::Cell& cell : map.cells) {
    const double share = most > least ? (cell.value - least) / (most - least) : 0.5;
    const int x = left + cell_width * static_cast<int>(cell.column),
              y = top + kCellHeight * static_cast<int>(cell.row);
    svg += fmt::format(
        "<g><title>{}</title><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\" "
        "stroke=\"white\"/>\n{}</g>\n",
        escape_html(cell.text), x, y, cell_width, kCellHeight, colour(share),
        text_at(x + cell_width / 2, y + 14, "middle", share > 0.45 ? "white" : "black",
                fmt::format("{:.4g}", cell.value)));
  }
  return svg + "</svg>\n";
}

}  // namespace aqhost
