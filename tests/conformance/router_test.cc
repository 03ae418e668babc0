#include "forward/router.h"

#include <functional>

#include "base/error.h"
#include "conformance/random_logits.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

FfnDesc described(const std::function<void(FfnDesc&)>& change) {
  FfnDesc desc;
  desc.kind = AQ_FFN_MOE;
  desc.router = AQ_ROUTER_SOFTMAX_TOPK;
  desc.n_experts = 12;
  desc.top_k = 4;
  change(desc);
  return desc;
}

void check(const std::function<void(FfnDesc&)>& change, bool biased = false) {
  const FfnDesc desc = described(change);
  const at::Tensor logits = random_logits(400, desc.n_experts);
  // steps of 1/4, so that no two sums are equal but for rounding
  const at::Tensor bias =
      biased ? at::randn({desc.n_experts}).mul_(4).round_().div_(4) : at::Tensor();
  check_same(route_batch(desc, logits, bias), plain_router(desc, logits, bias));
}

TEST_CASE("the host's batched router agrees with one written out, for every known kind") {
  check([](FfnDesc&) {});
  check([](FfnDesc& d) { d.norm_topk = true; });
  check([](FfnDesc& d) { d.routed_scale = 2.5f; });
  check([](FfnDesc& d) { d.top_k = 12; });
  check([](FfnDesc& d) { d.top_k = 1; });
  check([](FfnDesc& d) { d.n_experts = 1, d.top_k = 1; });
  for (const int32_t router : {AQ_ROUTER_SOFTMAX_TOPK, AQ_ROUTER_SIGMOID_TOPK}) {
    check([&](FfnDesc& d) { d.router = router, d.norm_topk = true, d.routed_scale = 0.5f; });
    check([&](FfnDesc& d) { d.router = router, d.n_groups = 4, d.top_groups = 2; });
    check([&](FfnDesc& d) { d.router = router; }, true);
  }
}

TEST_CASE("the batched router refuses what only the adapter knows") {
  const FfnDesc desc = described([](FfnDesc& d) { d.router = AQ_ROUTER_CUSTOM; });
  CHECK_THROWS_WITH_AS(route_batch(desc, at::zeros({1, 12}), {}),
                       "only the adapter knows how its router chooses", Error);
}

}  // namespace
}  // namespace aqhost
