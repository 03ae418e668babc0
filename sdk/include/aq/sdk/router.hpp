// aq/sdk/router.hpp - the default router, which defines AQ_ROUTER_SOFTMAX_TOPK and
// AQ_ROUTER_SIGMOID_TOPK.
#pragma once

#include <aq/model.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace aq {

/// Routes one token at a time. Scores are the float32 softmax (over all experts) or sigmoid of the
/// logits. The bias is added to the scores when experts are chosen, but not when they are weighted
/// (DeepSeek-V3, arXiv:2412.19437, section 2.1.2). Without a bias, experts are chosen by their
/// logits, which have the same order as the scores: thus the choice does not depend on the last bit
/// of an exp(). aq_model.route documents ties, NaN and -inf.
class Router {
 public:
  explicit Router(const aq_ffn_desc& desc)
      : desc_(desc),
        scores_(static_cast<std::size_t>(desc.n_experts)),
        choice_(scores_.size()),
        order_(scores_.size()) {}

  /// `logits` and `bias` (or nullptr) are [n_experts]; `ids` and `weights` are [top_k].
  void route(const float* logits, const float* bias, int32_t* ids, float* weights) {
    score(logits);
    const bool by_logits = desc_.n_groups <= 1 || desc_.group_best <= 1;  // sums need the scores
    for (std::size_t e = 0; e < scores_.size(); e++)
      choice_[e] = !(logits[e] > kNever) ? kNever
                   : bias != nullptr     ? scores_[e] + bias[e]
                   : by_logits           ? logits[e]
                                         : scores_[e];
    if (desc_.n_groups > 1) keep_best_groups();
    for (std::size_t e = 0; e < order_.size(); e++) order_[e] = static_cast<int32_t>(e);
    const auto better = [this](int32_t a, int32_t b) {
      const float x = choice_[static_cast<std::size_t>(a)],
                  y = choice_[static_cast<std::size_t>(b)];
      return x > y || (x == y && a < b);
    };
    std::partial_sort(order_.begin(), order_.begin() + desc_.top_k, order_.end(), better);
    float sum = 0;
    for (int32_t slot = 0; slot < desc_.top_k; slot++) {
      const auto e = static_cast<std::size_t>(order_[static_cast<std::size_t>(slot)]);
      const bool chosen = choice_[e] > kNever;
      ids[slot] = chosen ? static_cast<int32_t>(e) : -1;
      weights[slot] = chosen ? scores_[e] : 0.0f;
      sum += weights[slot];
    }
    const float scale = desc_.routed_scale == 0 ? 1.0f : desc_.routed_scale;
    for (int32_t slot = 0; slot < desc_.top_k; slot++) {
      if (desc_.norm_topk && sum > 0) weights[slot] /= std::max(sum, desc_.norm_min);
      weights[slot] *= scale;
    }
  }

 private:
  static constexpr float kNever = -std::numeric_limits<float>::infinity();

  void score(const float* logits) {
    if (desc_.router == AQ_ROUTER_SIGMOID_TOPK) {
      for (std::size_t e = 0; e < scores_.size(); e++)
        scores_[e] = logits[e] > kNever ? 1.0f / (1.0f + std::exp(-logits[e])) : 0.0f;
      return;
    }
    float most = kNever;  // NaN fails every comparison
    for (std::size_t e = 0; e < scores_.size(); e++) most = logits[e] > most ? logits[e] : most;
    float sum = 0;
    for (std::size_t e = 0; e < scores_.size(); e++) {
      const bool infinite = logits[e] == most && std::isinf(most);
      scores_[e] = !(logits[e] > kNever) ? 0.0f : infinite ? 1.0f : std::exp(logits[e] - most);
      sum += scores_[e];
    }
    if (sum > 0)
      for (float& s : scores_) s /= sum;
  }

  /// Keeps only the experts of the `top_groups` groups with the highest score, which is that of the
  /// best expert (the group limit of DeepSeek-V2) or the sum of the `group_best` best ones
  /// (DeepSeek-V3). Of groups with equal scores, those with the lower index are kept.
  void keep_best_groups() {
    const std::size_t groups = static_cast<std::size_t>(desc_.n_groups);
    const std::size_t size = choice_.size() / groups;
    std::vector<std::size_t> best(groups);
    std::vector<float> score(groups), sorted(size);
    const std::size_t summed =
        std::min(size, static_cast<std::size_t>(std::max(desc_.group_best, 1)));
    for (std::size_t g = 0; g < groups; g++) {
      best[g] = g;
      std::partial_sort_copy(choice_.begin() + static_cast<std::ptrdiff_t>(g * size),
                             choice_.begin() + static_cast<std::ptrdiff_t>((g + 1) * size),
                             sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(summed),
                             std::greater<float>());
      for (std::size_t i = 0; i < summed; i++) score[g] += sorted[i];
    }
    std::stable_sort(best.begin(), best.end(),
                     [&](std::size_t a, std::size_t b) { return score[a] > score[b]; });
    for (std::size_t i = static_cast<std::size_t>(desc_.top_groups); i < groups; i++)
      std::fill_n(choice_.begin() + static_cast<std::ptrdiff_t>(best[i] * size), size, kNever);
  }

  aq_ffn_desc desc_;
  std::vector<float> scores_, choice_;
  std::vector<int32_t> order_;
};

}  // namespace aq
