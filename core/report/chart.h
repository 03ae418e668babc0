#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "report/html.h"

namespace aqhost {

/// What a picture says about itself: its heading, what one sees in it, and the numbers behind it,
/// which the page shows on demand.
struct Caption {
  std::string title, description;
  HtmlTable numbers;
};

/// A colour of a picture and what it stands for. `color` is a class of the style sheet: s0 to s6
/// are shades of one hue from light to dark, c0 to c7 are different hues.
struct LegendEntry {
  std::string color, text;
};

/// The labels along an axis of `size` places of equal width, which are numbered from `first` on.
struct Axis {
  std::string title;
  int64_t size = 0, first = 0;
};

/// Bars over an axis. Those of a series are drawn on top of those of the series before it; if
/// `stacked`, they begin where these end. A negative value stands for no bar.
struct BarChart {
  struct Series {
    std::string color, name;
    std::vector<double> values;
  };
  Axis x;
  std::vector<Series> series;
  bool stacked = false;
  double top = 0;  // the value at the upper end; 0: the largest of all, rounded up
  /// How a value is written, at the axis and in the tips of bars.
  std::string (*text)(double value) = nullptr;
};
void draw(Html& html, const Caption& caption, const BarChart& chart);

/// Rectangles in rows, from top to bottom, and columns. A cell has a class of colour; "" stands for
/// an empty cell. Cells with a mark have a cross, so that they can be told from others without
/// colours.
struct CellChart {
  std::vector<std::string> rows;  // the labels
  Axis columns;
  std::vector<std::string> colors;  // [rows * columns]
  std::vector<bool> marked;         // likewise; empty: none
  std::vector<LegendEntry> legend;
  std::string mark_text;  // what the cross stands for
  std::string row_title;  // what the rows are, if their labels do not say it
};
void draw(Html& html, const Caption& caption, const CellChart& chart);

/// One bar of parts that lie side by side, with a legend.
struct Portion {
  std::string color, text;
  double value = 0;
};
void draw_portions(Html& html, const Caption& caption, const std::vector<Portion>& portions);

/// The smallest of 1, 2, 4 and 8 times a power of ten that is at least `value`; 1 if that is 0. A
/// quarter of it is a short number as well.
double round_up(double value);

}  // namespace aqhost
