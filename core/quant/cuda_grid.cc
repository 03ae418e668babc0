#include "quant/cuda_grid.h"

#include <algorithm>
#include <aq/sdk/grid.hpp>
#include <cmath>
#include <limits>
#include <vector>

namespace aqhost {
namespace {

void set_table(const FormatDesc& desc, cuda::Grid& grid) {
  std::copy(desc.table().begin(), desc.table().end(), grid.by_code);
  const aq::Grid sdk_grid(desc);
  const std::vector<uint32_t>& order = sdk_grid.order();
  grid.n_values = static_cast<int32_t>(order.size());
  for (std::size_t i = 0; i < order.size(); i++) {
    grid.codes[i] = static_cast<uint8_t>(order[i]);
    grid.values[i] = desc.values[order[i]];
    if (i == 0) continue;
    const float low = grid.values[i - 1], high = grid.values[i], middle = (low + high) / 2;
    if (low == 0 && high == 0) grid.negative_zero = 1;
    // a tie goes to the even code
    const bool up = middle == high || order[i - 1] % 2 != 0;
    grid.bounds[i - 1] =
        up ? middle : std::nextafter(middle, std::numeric_limits<float>::infinity());
  }
}

}  // namespace

cuda::Grid make_cuda_grid(const FormatDesc& desc) {
  cuda::Grid grid{};
  grid.integer = desc.element_kind == AQ_ELEM_INT ? 1 : 0;
  grid.minmax = desc.fit_rule == AQ_FIT_MINMAX ? 1 : 0;
  grid.scale_kind = desc.scale_kind;
  grid.scale_round = desc.scale_round;
  grid.scale_mantissa_bits = desc.scale_mantissa_bits;
  grid.group_params = static_cast<int32_t>(desc.group_params);
  grid.n_search = static_cast<int32_t>(desc.n_search);
  grid.least = static_cast<float>(desc.int_min);
  grid.most = static_cast<float>(desc.int_max);
  grid.divisor = desc.scale_divisor;
  std::copy_n(desc.search, desc.n_search, grid.search);
  if (grid.integer == 0) set_table(desc, grid);
  return grid;
}

}  // namespace aqhost
