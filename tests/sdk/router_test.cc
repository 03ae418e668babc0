#include <doctest/doctest.h>

#include <aq/sdk/router.hpp>
#include <numeric>
#include <random>

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = NAN;

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice route(const aq_ffn_desc& desc, const std::vector<float>& logits,
             const std::vector<float>& bias = {}) {
  aq::Router router(desc);
  Choice choice{std::vector<int32_t>(static_cast<std::size_t>(desc.top_k), 99),
                std::vector<float>(static_cast<std::size_t>(desc.top_k), 99)};
  router.route(logits.data(), bias.empty() ? nullptr : bias.data(), choice.ids.data(),
               choice.weights.data());
  return choice;
}

aq_ffn_desc softmax(int32_t experts, int32_t top_k) {
  aq_ffn_desc desc{};
  desc.router = AQ_ROUTER_SOFTMAX_TOPK;
  desc.n_experts = experts;
  desc.top_k = top_k;
  return desc;
}

using Ids = std::vector<int32_t>;
using Weights = std::vector<float>;

/// The contract in double, one expert after the other, with no sorting.
Choice reference(const aq_ffn_desc& desc, const std::vector<float>& logits,
                 const std::vector<float>& bias) {
  const std::size_t n = logits.size();
  std::vector<double> score(n), pick(n);
  double sum = 0;
  for (std::size_t e = 0; e < n; e++) {
    score[e] = desc.router == AQ_ROUTER_SIGMOID_TOPK ? 1 / (1 + std::exp(-double{logits[e]}))
                                                     : std::exp(double{logits[e]});
    sum += score[e];
  }
  for (std::size_t e = 0; e < n; e++) {
    if (desc.router == AQ_ROUTER_SOFTMAX_TOPK) score[e] /= sum;
    pick[e] = score[e] + (bias.empty() ? 0 : bias[e]);
  }
  const std::size_t groups = desc.n_groups > 1 ? static_cast<std::size_t>(desc.n_groups) : 1;
  std::vector<bool> open(n, groups == 1);
  const std::size_t size = n / groups;
  const auto group_score = [&](std::size_t group) {
    std::vector<bool> counted(n);
    double total = 0;
    for (int32_t i = 0; i < std::max(desc.group_best, 1); i++) {
      std::size_t best = n;
      for (std::size_t e = group * size; e < (group + 1) * size; e++)
        if (!counted[e] && (best == n || pick[e] > pick[best])) best = e;
      counted[best] = true;
      total += pick[best];
    }
    return total;
  };
  for (int32_t g = 0; groups > 1 && g < desc.top_groups; g++) {
    std::size_t best = groups;
    for (std::size_t group = 0; group < groups; group++)
      if (!open[group * size] && (best == groups || group_score(group) > group_score(best)))
        best = group;
    std::fill_n(open.begin() + static_cast<std::ptrdiff_t>(best * size), size, true);
  }
  Choice choice;
  double chosen = 0;
  for (int32_t slot = 0; slot < desc.top_k; slot++) {
    std::size_t best = n;
    for (std::size_t e = 0; e < n; e++)
      if (open[e] && (best == n || pick[e] > pick[best])) best = e;
    choice.ids.push_back(best == n ? -1 : static_cast<int32_t>(best));
    choice.weights.push_back(best == n ? 0 : static_cast<float>(score[best]));
    if (best == n) continue;
    chosen += score[best];
    open[best] = false;
  }
  const double scale = desc.routed_scale == 0 ? 1 : desc.routed_scale;
  chosen = std::max<double>(chosen, desc.norm_min);
  for (float& w : choice.weights) w = static_cast<float>(w * scale / (desc.norm_topk ? chosen : 1));
  return choice;
}

}  // namespace

TEST_CASE("of equal scores the lower id comes first") {
  const Choice choice = route(softmax(6, 4), {1, 2, 1, 2, 1, 2});
  CHECK(choice.ids == Ids{1, 3, 5, 0});
  CHECK(choice.weights[0] == choice.weights[2]);
  CHECK(route(softmax(5, 3), {0, 0, 0, 0, 0}).ids == Ids{0, 1, 2});
}

TEST_CASE("NaN and -inf are never chosen, and a slot nobody fills has -1 and 0") {
  const Choice choice = route(softmax(4, 3), {kNan, 1, -kInfinity, 1});
  CHECK(choice.ids == Ids{1, 3, -1});
  CHECK(choice.weights == Weights{0.5f, 0.5f, 0});
  const Choice none = route(softmax(3, 2), {kNan, -kInfinity, kNan});
  CHECK(none.ids == Ids{-1, -1});
  CHECK(none.weights == Weights{0, 0});
  aq_ffn_desc normed = softmax(3, 2);
  normed.norm_topk = 1;
  CHECK(route(normed, {kNan, -kInfinity, kNan}).weights == Weights{0, 0});
  normed.router = AQ_ROUTER_SIGMOID_TOPK;
  CHECK(route(normed, {kNan, 0, -kInfinity}).weights == Weights{1, 0});
  CHECK(route(normed, {kNan, 0, -kInfinity}).ids == Ids{1, -1});
}

TEST_CASE("+inf takes all, shared among its like, and large logits do not overflow") {
  const Choice choice = route(softmax(4, 3), {kInfinity, 5, kInfinity, -5});
  CHECK(choice.ids == Ids{0, 2, 1});
  CHECK(choice.weights == Weights{0.5f, 0.5f, 0});
  CHECK(route(softmax(2, 2), {3e38f, -3e38f}).weights == Weights{1, 0});
}

TEST_CASE("the bias picks and does not weigh") {
  const Choice choice = route(softmax(3, 1), {std::log(2.0f), 0, 0}, {0, 0.5f, 0});
  CHECK(choice.ids == Ids{1});
  CHECK(choice.weights[0] == doctest::Approx(0.25));
}

TEST_CASE("of equal groups the lower, and an empty group gives nothing") {
  aq_ffn_desc desc = softmax(6, 2);
  desc.n_groups = 3;
  desc.top_groups = 1;
  CHECK(route(desc, {0, 3, 3, 1, 2, 2}).ids == Ids{1, 0});
  CHECK(route(desc, {kNan, kNan, -kInfinity, -kInfinity, kNan, 7}).ids == Ids{5, -1});
}

TEST_CASE("what the description says, against the contract spelled out") {
  std::mt19937 random(1);
  const auto below = [&](int32_t n) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(n));
  };
  for (int round = 0; round < 2000; round++) {
    aq_ffn_desc desc = softmax(12, 1 + below(12));
    desc.router = below(2) == 0 ? AQ_ROUTER_SOFTMAX_TOPK : AQ_ROUTER_SIGMOID_TOPK;
    desc.norm_topk = below(2);
    desc.routed_scale = below(2) == 0 ? 0 : 2.5f;
    if (below(2) == 0) {
      desc.n_groups = below(2) == 0 ? 3 : 4;
      desc.top_groups = 1 + below(desc.n_groups);
      desc.group_best = below(4);  // 0 means 1
    }
    desc.norm_min = below(2) == 0 ? 0 : 0.6f;
    // few different values, so that there are many ties, but no sums that only rounding decides
    std::vector<float> logits(12), bias;
    for (float& x : logits) x = static_cast<float>(below(7)) * 0.5f - 0.9f;
    if (below(2) == 0)
      for (int e = 0; e < 12; e++) bias.push_back(static_cast<float>(below(3)));
    const Choice got = route(desc, logits, bias), expected = reference(desc, logits, bias);
    REQUIRE(got.ids == expected.ids);
    for (std::size_t i = 0; i < got.weights.size(); i++)
      REQUIRE(got.weights[i] == doctest::Approx(expected.weights[i]).epsilon(1e-5));
  }
}
