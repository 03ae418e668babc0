#include "pipeline/balance.h"

#include <algorithm>
#include <limits>

#include "base/interrupt.h"
#include "forward/decoder.h"
#include "forward/layer.h"
#include "pipeline/coverage.h"
#include "tensor/tensor.h"

namespace aqhost {
namespace {

constexpr int64_t kBatchTokens = 8192;
constexpr double kTemperature = 0.1;  // 0.01 of spread weighs as much as 0.1 nats of loss

/// Takes a batch [windows, tokens, hidden] through a layer; uses [windows, experts] or undefined.
void run_batch(const Layer& layer, at::Tensor& batch, const at::Tensor& uses) {
  if (uses.defined()) {
    const at::Tensor y =
        batch + layer.attention_output(layer.attention_context(layer.attention_input(batch)));
    const at::Tensor f = layer.ffn_input(y).flatten(0, 1);
    const at::Tensor ids = layer.route(f).ids.view({batch.size(0), -1});
    for (int64_t w = 0; w < batch.size(0); w++)
      for (const int32_t id : span_of<int32_t>(ids[w]))
        if (id >= 0) uses[w][id] += 1;
    batch.copy_(y + layer.ffn(f).view_as(y));
  } else {
    batch.copy_(layer.forward(batch));
  }
}

at::Tensor losses(const Ends& ends, const at::Tensor& x, const at::Tensor& windows) {
  const int64_t n = windows.size(1) - 1;
  at::Tensor loss = at::empty({windows.size(0)}, at::kDouble);
  for (int64_t w = 0; w < windows.size(0); w++) {
    check_interrupt();
    const at::Tensor log_p = ends.logits(x[w].narrow(0, 0, n)).to(at::kFloat).log_softmax(-1);
    loss[w] = -log_p.gather(1, windows[w].narrow(0, 1, n).unsqueeze(1)).mean();
  }
  return loss;
}

/// What is known of one layer while windows are being chosen.
struct Balance {
  at::Tensor uses;     // [windows, experts] f64
  at::Tensor squares;  // [windows], sums over experts
  at::Tensor sum;      // [experts], of the windows chosen

  /// The spread with each window added [windows].
  at::Tensor spreads() const {
    const at::Tensor square = squares + 2 * uses.mv(sum) + sum.square().sum();
    const at::Tensor mean = (uses.sum(1) + sum.sum()) / uses.size(1);
    return (square / uses.size(1) - mean.square()).clamp_min(0).sqrt() / mean;
  }
};

}  // namespace

WindowUse window_use(const Source& source, const Model& model, const at::Tensor& windows,
                     at::ScalarType dtype, const std::function<void(int32_t layer)>& progress) {
  WindowUse use;
  const int64_t step = std::max<int64_t>(1, kBatchTokens / windows.size(1));
  const Ends ends(source, model, dtype);
  at::Tensor x = ends.embed(windows);
  for (int32_t l = 0; l < model.desc().n_layers; l++) {
    const Layer layer(source, model, l, windows.size(1), dtype);
    at::Tensor uses;
    if (model.ffn(l).kind == AQ_FFN_MOE) {
      uses = at::zeros({windows.size(0), model.ffn(l).n_experts}, at::kFloat);
      use.experts.push_back(uses);
    }
    for (int64_t begin = 0; begin < x.size(0); begin += step) {
      check_interrupt();
      const int64_t count = std::min(step, x.size(0) - begin);
      at::Tensor batch = x.narrow(0, begin, count);
      run_batch(layer, batch, uses.defined() ? uses.narrow(0, begin, count) : uses);
    }
    if (progress) progress(l);
  }
  use.loss = losses(ends, x, windows);
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
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t w = 0; w < file.size(); w++) {
      if (taken[w] || quota[file[w]] == 0) continue;
      const double mean_loss = (loss + losses[w]) / static_cast<double>(chosen.size() + 1);
      const double score = mean_loss + spread[w] / kTemperature;
      if (score >= least) continue;
      least = score;
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
