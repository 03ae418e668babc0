#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace aqhost {

/// A table of numbers that is drawn as a heat map.
struct HeatMap {
  struct Cell {
    std::size_t row, column;
    double value;
    std::string text;  // what a reader sees when the pointer is on the cell
  };
  std::string title, description;
  std::vector<std::string> rows, columns;
  std::vector<Cell> cells;  // places without a cell stay empty
};

/// The heat map as a picture in SVG that needs nothing else. It has a title and a description for
/// people who cannot see it. Each cell shows its value; the darker, the larger.
std::string to_svg(const HeatMap& map);

}  // namespace aqhost
