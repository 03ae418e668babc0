#include "forward/routing.h"

#include "tensor/tensor.h"

namespace aqhost {

namespace {

/// Uses a sort, which is the fastest way on a GPU.
std::vector<ExpertTokens> sorted_by_expert(const Routing& routing, int32_t n_experts) {
  const at::Tensor flat = routing.ids.flatten();
  const at::Tensor order = flat.argsort(/*stable=*/true, 0, /*descending=*/false);
  // unused slots (id -1) come first
  const at::Tensor counts = at::bincount(flat + 1, {}, n_experts + 1).cpu();
  const at::Tensor rows = order.floor_divide(routing.ids.size(1));
  const at::Tensor weights = routing.weights.flatten().index_select(0, order);
  const auto count = span_of<int64_t>(counts);
  std::vector<ExpertTokens> experts;
  int64_t begin = count[0];
  for (const int64_t n : count.subspan(1)) {
    experts.push_back({rows.narrow(0, begin, n), weights.narrow(0, begin, n)});
    begin += n;
  }
  return experts;
}

}  // namespace

std::vector<ExpertTokens> tokens_by_expert(const Routing& routing, int32_t n_experts) {
  if (!routing.ids.is_cpu()) return sorted_by_expert(routing, n_experts);
  const at::Tensor ids_tensor = routing.ids.contiguous();
  const at::Tensor weights_tensor = routing.weights.contiguous();
  const auto ids = span_of<int32_t>(ids_tensor);
  const auto weights = span_of<float>(weights_tensor);
  const int64_t top_k = routing.ids.size(1);
  std::vector<int64_t> counts(static_cast<std::size_t>(n_experts));
  for (const int32_t id : ids)
    if (id >= 0) counts[static_cast<std::size_t>(id)]++;

  struct Cursor {
    int64_t* row;
    float* weight;
  };
  std::vector<ExpertTokens> experts;
  std::vector<Cursor> cursors;
  for (const int64_t count : counts) {
    experts.push_back({at::empty({count}, at::kLong), at::empty({count}, at::kFloat)});
    cursors.push_back(
        {experts.back().rows.data_ptr<int64_t>(), experts.back().weights.data_ptr<float>()});
  }
  for (std::size_t i = 0; i < ids.size(); i++) {
    if (ids[i] < 0) continue;
    Cursor& cursor = cursors[static_cast<std::size_t>(ids[i])];
    *cursor.row++ = static_cast<int64_t>(i) / top_k;
    *cursor.weight++ = weights[i];
  }
  return experts;
}

}  // namespace aqhost
