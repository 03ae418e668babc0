#include "run/balance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "base/interrupt.h"
#include "run/forward_pass.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr double kTemperature = 0.1;  // 0.01 of spread weighs as much as 0.1 nats of loss

/// The state of one layer while windows are being chosen.
struct Balance {
  at::Tensor uses;     // [windows, experts] f64
  at::Tensor squares;  // [windows], the sums of squared uses over experts
  at::Tensor sum;      // [experts], the uses by the windows chosen so far

  /// [windows]: the spread of the chosen windows if each window were added to them.
  at::Tensor spreads() const {
    const at::Tensor square = squares + 2 * uses.mv(sum) + sum.square().sum();
    const at::Tensor mean = (uses.sum(1) + sum.sum()) / uses.size(1);
    return (square / uses.size(1) - mean.square()).clamp_min(0).sqrt() / mean;
  }
};

}  // namespace

double spread(const std::vector<int64_t>& tokens) {
  if (tokens.empty()) return 0;
  const double mean =
      std::accumulate(tokens.begin(), tokens.end(), 0.0) / static_cast<double>(tokens.size());
  double squares = 0;
  for (const int64_t n : tokens) squares += std::pow(static_cast<double>(n) - mean, 2);
  return mean > 0 ? std::sqrt(squares / static_cast<double>(tokens.size())) / mean : 0;
}

WindowUse window_use(const Source& source, const Model& model, const at::Tensor& windows,
                     const at::TensorOptions& options,
                     const std::function<void(int32_t layer)>& progress) {
  std::map<int32_t, at::Tensor> uses;  // by layer
  const auto count = [&](int32_t layer, int64_t begin, const Routing& routing) {
    const auto [it, first] = uses.try_emplace(layer);
    if (first) it->second = at::zeros({windows.size(0), model.ffn(layer).n_experts}, at::kFloat);
    const at::Tensor ids = routing.ids.cpu().view({-1, windows.size(1) * routing.ids.size(1)});
    for (int64_t w = 0; w < ids.size(0); w++) {
      const at::Tensor row = it->second[begin + w];
      const std::span<float> tokens = span_of<float>(row);
      for (const int32_t id : span_of<int32_t>(ids[w]))
        if (id >= 0) tokens[static_cast<std::size_t>(id)] += 1;
    }
  };
  const at::Tensor x = run_layers(source, model, windows, progress, options, count);
  WindowUse use;
  for (const auto& [layer, of_layer] : uses) use.experts.push_back(of_layer);
  use.loss = next_token_losses(OutputHead(source, model, options), x, windows)
                 .mean(at::IntArrayRef{1}, false, at::kDouble);
  return use;
}

double spread_of(const WindowUse& use, const std::vector<int64_t>& chosen) {
  double sum = 0;
  for (const at::Tensor& uses : use.experts) {
    const at::Tensor tokens =
        uses.index_select(0, at::tensor(chosen, at::kLong)).sum(0).to(at::kLong);
    const auto span = span_of<int64_t>(tokens);
    sum += spread({span.begin(), span.end()});
  }
  return sum / static_cast<double>(std::max<std::size_t>(1, use.experts.size()));
}

std::vector<int64_t> choose_balanced(const WindowUse& use, const std::vector<std::size_t>& file,
                                     std::vector<int64_t> quota) {
  std::vector<Balance> layers;
  for (const at::Tensor& uses : use.experts) {
    const at::Tensor u = uses.to(at::kDouble);
    layers.push_back({u, u.square().sum(1), at::zeros({u.size(1)}, at::kDouble)});
  }
  std::vector<bool> taken(file.size(), false);
  std::vector<int64_t> chosen;
  double loss = 0;
  const auto losses = span_of<double>(use.loss);
  while (true) {
    check_interrupt();
    at::Tensor spreads = at::zeros({static_cast<int64_t>(file.size())}, at::kDouble);
    for (const Balance& layer : layers)
      spreads += layer.spreads() / static_cast<double>(layers.size());
    const auto spread = span_of<double>(spreads);
    std::size_t best = file.size();
    double best_score = std::numeric_limits<double>::infinity();
    for (std::size_t w = 0; w < file.size(); w++) {
      if (taken[w] || quota[file[w]] == 0) continue;
      const double mean_loss = (loss + losses[w]) / static_cast<double>(chosen.size() + 1);
      const double score = mean_loss + spread[w] / kTemperature;
      if (score >= best_score) continue;
      best_score = score;
      best = w;
    }
    if (best == file.size()) break;
    taken[best] = true;
    quota[file[best]]--;
    loss += losses[best];
    chosen.push_back(static_cast<int64_t>(best));
    for (Balance& layer : layers) layer.sum += layer.uses[chosen.back()];
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace aqhost
