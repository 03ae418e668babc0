#pragma once

#include <aq/sdk/grid_math.hpp>
#include <cstdint>

namespace aqhost::cuda {

/// A described format as the kernels take it, by value: its description and its tables. Rounding is
/// compiled for the CPU too, where a test compares it with aq/sdk/grid.hpp bit for bit.
struct Grid {
  static constexpr int kMaximumSearch = 64, kMaximumValues = 256;

  aq_format_desc desc;  // its pointers are null
  float search[kMaximumSearch];

  // of integers
  float least, most;

  // of a table: see aq::table_index()
  uint32_t n_values, negative_zero;
  float bounds[kMaximumValues];
  float values[kMaximumValues];  // rising
  uint8_t codes[kMaximumValues];
  float by_code[kMaximumValues];  // all values, in the order of their codes
};

AQ_BOTH aq::Rounded round_to_grid(const Grid& grid, float t, float zero) {
  if (grid.desc.element_kind == AQ_ELEM_INT)
    return aq::round_to_integer(t, zero, grid.least, grid.most);
  const uint32_t i = aq::table_index(grid.bounds, grid.n_values, grid.negative_zero, t);
  return {grid.values[i], grid.codes[i]};
}

/// The value of a code before it is multiplied by the scale.
AQ_BOTH float value_of(const Grid& grid, uint32_t code, float zero) {
  return grid.desc.element_kind == AQ_ELEM_INT ? aq::integer_value(code, zero, grid.least)
                                               : grid.by_code[code];
}

}  // namespace aqhost::cuda
