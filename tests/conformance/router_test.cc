#include "forward/router.h"

#include <aq/sdk/router.hpp>
#include <cmath>
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

/// The router of the SDK, which the adapters' route() calls.
Routing sdk_router(const FfnDesc& desc, const at::Tensor& logits, const at::Tensor& bias) {
  aq_ffn_desc raw{};
  raw.struct_size = sizeof raw;
  raw.n_experts = desc.n_experts;
  raw.top_k = desc.top_k;
  raw.router = desc.router;
  raw.norm_topk = desc.norm_topk;
  raw.routed_scale = desc.routed_scale;
  raw.n_groups = desc.n_groups;
  raw.top_groups = desc.top_groups;
  raw.group_best = desc.group_best;
  raw.norm_min = desc.norm_min;
  const int64_t tokens = logits.size(0);
  Routing out{logits, at::empty({tokens, desc.top_k}, at::kInt), at::empty({tokens, desc.top_k})};
  aq::Router router(raw);
  for (int64_t t = 0; t < tokens; t++)
    router.route(logits[t].const_data_ptr<float>(),
                 bias.defined() ? bias.const_data_ptr<float>() : nullptr,
                 out.ids[t].data_ptr<int32_t>(), out.weights[t].data_ptr<float>());
  return out;
}

void check(const std::function<void(FfnDesc&)>& change, bool biased = false) {
  const FfnDesc desc = described(change);
  const at::Tensor logits = random_logits(400, desc.n_experts);
  // steps of 1/4, so that no two sums are equal but for rounding
  const at::Tensor bias =
      biased ? at::randn({desc.n_experts}).mul_(4).round_().div_(4) : at::Tensor();
  const Routing batched = route_batch(desc, logits, bias);
  check_same(batched, plain_router(desc, logits, bias));
  check_same(batched, sdk_router(desc, logits, bias));
}

TEST_CASE("the host's batched router and the SDK's agree with one written out, for every kind") {
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
    for (const bool biased : {false, true})
      for (const int32_t top_groups : {1, 2, 4})
        check(
            [&](FfnDesc& d) {
              d.router = router, d.n_groups = 4, d.top_groups = top_groups, d.group_best = 2;
            },
            biased);
    for (const float norm_min : {1e-12f, 0.3f, 2.0f})
      check([&](FfnDesc& d) {
        d.router = router, d.norm_topk = true, d.norm_min = norm_min, d.routed_scale = 2.5f;
      });
  }
}

TEST_CASE("a group's score is its best expert's, or the sum of its two best") {
  FfnDesc desc = described([](FfnDesc& d) {
    d.router = AQ_ROUTER_SIGMOID_TOPK;
    d.n_experts = 6, d.top_k = 2, d.n_groups = 2, d.top_groups = 1;
  });
  // the first group has the best expert, the second the best two
  const at::Tensor logits = at::tensor({3.0, -3.0, -3.0, 2.0, 1.0, -3.0}, at::kFloat).view({1, 6});
  CHECK(at::equal(route_batch(desc, logits, {}).ids, at::tensor({0, 1}, at::kInt).view({1, 2})));
  desc.group_best = 2;
  CHECK(at::equal(route_batch(desc, logits, {}).ids, at::tensor({3, 4}, at::kInt).view({1, 2})));
  const at::Tensor bias = at::tensor({0.0, 0.9, 0.0, 0.0, 0.0, 0.0}, at::kFloat);
  CHECK(at::equal(route_batch(desc, logits, bias).ids, at::tensor({0, 1}, at::kInt).view({1, 2})));
}

TEST_CASE("weights are not divided by a sum that is smaller than the minimum") {
  FfnDesc desc = described([](FfnDesc& d) {
    d.router = AQ_ROUTER_SIGMOID_TOPK;
    d.n_experts = 2, d.top_k = 2, d.norm_topk = true, d.norm_min = 0.5f;
  });
  const at::Tensor logits = at::tensor({-3.0, -4.0, 3.0, 4.0}, at::kFloat).view({2, 2});
  const Routing routing = route_batch(desc, logits, {});
  CHECK(routing.weights[0].sum().item<double>() ==
        doctest::Approx((1 / (1 + std::exp(3.0)) + 1 / (1 + std::exp(4.0))) / 0.5));
  CHECK(routing.weights[1].sum().item<double>() == doctest::Approx(1));
}

TEST_CASE("the batched router refuses what only the adapter knows") {
  const FfnDesc desc = described([](FfnDesc& d) { d.router = AQ_ROUTER_CUSTOM; });
  CHECK_THROWS_WITH_AS(route_batch(desc, at::zeros({1, 12}), {}),
                       "only the adapter knows how its router chooses", Error);
}

}  // namespace
}  // namespace aqhost
