#include "quant/cuda_grid.h"

#include <algorithm>
#include <aq/sdk/grid.hpp>

namespace aqhost {

cuda::Grid make_cuda_grid(const FormatDesc& desc) {
  cuda::Grid grid{};
  grid.desc = desc;
  grid.desc.values = grid.desc.search = nullptr;
  grid.desc.group_sizes = nullptr;
  std::copy_n(desc.search, desc.n_search, grid.search);
  grid.least = static_cast<float>(desc.int_min);
  grid.most = static_cast<float>(desc.int_max);
  const aq::Grid sdk_grid(desc);
  const std::vector<uint32_t>& order = sdk_grid.order();
  grid.n_values = static_cast<uint32_t>(order.size());
  grid.negative_zero = sdk_grid.negative_zero();
  std::copy(sdk_grid.bounds().begin(), sdk_grid.bounds().end(), grid.bounds);
  for (std::size_t i = 0; i < order.size(); i++) {
    grid.codes[i] = static_cast<uint8_t>(order[i]);
    grid.values[i] = desc.values[order[i]];
  }
  std::copy(desc.table().begin(), desc.table().end(), grid.by_code);
  return grid;
}

}  // namespace aqhost
