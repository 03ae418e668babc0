#include "conformance/random_logits.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "torch_doctest.h"

namespace aqhost {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
using Row = std::vector<float>;

Row scores_of(const FfnDesc& desc, const Row& logits) {
  Row scores;
  float most = -kInfinity, sum = 0;
  for (const float x : logits) most = std::max(most, x);
  for (const float x : logits) {
    float score = 0;
    if (desc.router == AQ_ROUTER_SIGMOID_TOPK)
      score = 1 / (1 + std::exp(-x));
    else if (x > -kInfinity)
      score = most == kInfinity ? static_cast<float>(x == most) : std::exp(x - most);
    scores.push_back(score);
    sum += score;
  }
  if (desc.router == AQ_ROUTER_SOFTMAX_TOPK && sum > 0)
    for (float& score : scores) score /= sum;
  return scores;
}

/// The score of a group: the sum of its `group_best` best experts.
float group_score(const FfnDesc& desc, Row group) {
  std::sort(group.begin(), group.end(), std::greater<float>());
  float sum = 0;
  for (int32_t i = 0; i < desc.group_best; i++) sum += group[static_cast<std::size_t>(i)];
  return sum;
}

/// Keeps the groups with the highest scores; of equal ones the first.
void forbid_groups(const FfnDesc& desc, Row& choice) {
  const auto size = choice.size() / static_cast<std::size_t>(desc.n_groups);
  Row best;
  for (std::size_t g = 0; g < choice.size(); g += size)
    best.push_back(group_score(desc, Row(&choice[g], &choice[g] + size)));
  std::vector<bool> kept(best.size());
  for (int32_t i = 0; i < desc.top_groups; i++) {
    std::size_t first = best.size();
    for (std::size_t g = 0; g < best.size(); g++)
      if (!kept[g] && (first == best.size() || best[g] > best[first])) first = g;
    kept[first] = true;
  }
  for (std::size_t e = 0; e < choice.size(); e++)
    if (!kept[e / size]) choice[e] = -kInfinity;
}

}  // namespace

at::Tensor random_logits(int64_t tokens, int64_t n_experts) {
  at::manual_seed(11);
  at::Tensor x = at::randn({tokens, n_experts});
  const auto rows = [&](int64_t kind) { return x.slice(0, kind, tokens, 8); };
  const auto some = [&](int64_t kind, double share) { return at::rand_like(rows(kind)) < share; };
  rows(1).mul_(2).round_().div_(2);
  rows(2).masked_fill_(some(2, 0.2), std::numeric_limits<double>::quiet_NaN());
  rows(3).masked_fill_(some(3, 0.7), -kInfinity);
  rows(4).masked_fill_(some(4, 0.1), kInfinity);
  rows(5).masked_fill_(some(5, 0.4), 0.0).masked_fill_(some(5, 0.3), -0.0);
  rows(6).mul_(60);
  rows(7).mul_(3).round_().masked_fill_(some(7, 0.2), -kInfinity);
  x[0].fill_(-kInfinity);
  x[8].fill_(std::numeric_limits<double>::quiet_NaN());
  x[16].fill_(kInfinity);
  return x;
}

Routing plain_router(const FfnDesc& desc, const at::Tensor& logits, const at::Tensor& bias) {
  const int64_t tokens = logits.size(0), experts = desc.n_experts, k = desc.top_k;
  Routing out{logits, at::full({tokens, k}, -1, at::kInt), at::zeros({tokens, k})};
  for (int64_t t = 0; t < tokens; t++) {
    Row row, choice;
    for (int64_t e = 0; e < experts; e++) {
      const auto x = logits[t][e].item<float>();
      row.push_back(std::isnan(x) ? -kInfinity : x);
    }
    const Row scores = scores_of(desc, row);
    const bool by_scores = desc.n_groups > 1 && desc.group_best > 1;  // which can be summed
    for (std::size_t e = 0; e < row.size(); e++) {
      float x = row[e];
      if (x > -kInfinity && bias.defined())
        x = scores[e] + bias[static_cast<int64_t>(e)].item<float>();
      else if (x > -kInfinity && by_scores)
        x = scores[e];
      choice.push_back(x);
    }
    if (desc.n_groups > 1) forbid_groups(desc, choice);
    float sum = 0;
    for (int64_t slot = 0; slot < k; slot++) {
      const auto first = std::max_element(choice.begin(), choice.end());
      if (*first == -kInfinity) break;
      const auto e = first - choice.begin();
      out.ids[t][slot] = e;
      out.weights[t][slot] = scores[static_cast<std::size_t>(e)];
      sum += scores[static_cast<std::size_t>(e)];
      *first = -kInfinity;
    }
    if (desc.norm_topk && sum > 0) out.weights[t] /= std::max(sum, desc.norm_min);
    out.weights[t] *= desc.routed_scale;
  }
  return out;
}

void check_same(const Routing& a, const Routing& b) {
  CHECK(at::equal(a.ids, b.ids));
  CHECK(at::isfinite(a.weights).all().item<bool>());
  CHECK((a.weights - b.weights).abs().max().item<double>() < 1e-6);
}

}  // namespace aqhost
