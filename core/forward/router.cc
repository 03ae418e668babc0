#include "forward/router.h"

#include <limits>

#include "base/error.h"

namespace aqhost {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

/// Softmax over the last dimension. -inf becomes 0 even if there is no other value, and +inf takes
/// the whole weight.
at::Tensor softmax(const at::Tensor& logits) {
  const at::Tensor maximum = logits.amax(-1, true);
  const at::Tensor shifted = at::where(logits == maximum, 0.0, logits - maximum);
  const at::Tensor e = shifted.exp().masked_fill_(logits == kNever, 0.0);
  const at::Tensor sum = e.sum(-1, true);
  return e / at::where(sum > 0, sum, 1.0);
}

/// The positions of the `count` largest values in the last dimension, best first; of equal values
/// the first.
at::Tensor best(const at::Tensor& values, int64_t count) {
  return std::get<1>(values.sort(/*stable=*/true, -1, /*descending=*/true)).narrow(-1, 0, count);
}

/// Sets `choice` [N, n_experts] to -inf outside the groups with the highest sum of their
/// `group_best` best experts.
at::Tensor keep_best_groups(const at::Tensor& choice, const FfnDesc& desc) {
  const at::Tensor groups = choice.unflatten(1, {desc.n_groups, -1});
  const at::Tensor kept =
      best(desc.group_best == 1 ? groups.amax(-1)
                                : std::get<0>(groups.topk(desc.group_best, -1)).sum(-1),
           desc.top_groups);
  const at::Tensor mask =
      at::ones({choice.size(0), desc.n_groups}, choice.options().dtype(at::kBool))
          .scatter_(1, kept, false);
  return groups.masked_fill(mask.unsqueeze(2), kNever).flatten(1);
}

}  // namespace

Routing route_batch(const FfnDesc& desc, const at::Tensor& logits, const at::Tensor& bias) {
  if (desc.router == AQ_ROUTER_CUSTOM) fail("only the adapter knows how its router chooses");
  // -0 becomes 0, so that every sort treats them as equal
  const at::Tensor clean = logits.masked_fill(logits.isnan(), kNever) + 0.0;
  const at::Tensor scores =
      desc.router == AQ_ROUTER_SIGMOID_TOPK ? clean.sigmoid() : softmax(clean);
  at::Tensor choice = clean;
  if (bias.defined())
    choice = at::where(clean == kNever, clean, scores + bias);
  else if (desc.n_groups > 1 && desc.group_best > 1)  // sums need the scores
    choice = at::where(clean == kNever, clean, scores);
  if (desc.n_groups > 1) choice = keep_best_groups(choice, desc);
  const at::Tensor ids = best(choice, desc.top_k);
  const at::Tensor unused = choice.gather(1, ids) == kNever;
  at::Tensor weights = scores.gather(1, ids).masked_fill_(unused, 0.0);
  if (desc.norm_topk) {
    const at::Tensor sum = weights.sum(-1, true);
    weights = weights / at::where(sum > 0, sum.clamp_min(desc.norm_min), 1.0);
  }
  return {logits, ids.to(at::kInt).masked_fill_(unused, -1), weights * desc.routed_scale};
}

}  // namespace aqhost
