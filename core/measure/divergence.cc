#include "measure/divergence.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "forward/batches.h"
#include "forward/embedding_and_head.h"
#include "run/forward_pass.h"
#include "run/layer_reader.h"

namespace aqhost {
namespace {

void check_same_shape(const Runnable& reference, const Runnable& other) {
  const auto& a = reference.model->desc();
  const auto& b = other.model->desc();
  if (reference.model->id() == other.model->id() && a.n_layers == b.n_layers &&
      a.hidden_size == b.hidden_size && a.vocab_size == b.vocab_size)
    return;
  const auto shape = [](const Runnable& m) {
    const auto& d = m.model->desc();
    return fmt::format("{} ({}, {} layers of {}, vocabulary {})", m.source->directory(),
                       m.model->id(), d.n_layers, d.hidden_size, d.vocab_size);
  };
  fail("only versions of one model can be compared: {} and {}", shape(reference), shape(other));
}

/// The sum over tokens of |h - h0| / |h0|, for h and h0 [windows, tokens, hidden].
double error_sum(const at::Tensor& h, const at::Tensor& h0) {
  const at::Tensor target = h0.to(at::kFloat), norm = target.norm(2, -1).clamp_min(1e-30);
  return ((h.to(at::kFloat) - target).norm(2, -1) / norm).sum(at::kDouble).item<double>();
}

/// Takes x through a layer. x0 and y0 are the reference's states before and after it. Returns the
/// sums over tokens.
LayerError run_layer(const Layer& layer, const at::Tensor& x0, const at::Tensor& y0,
                     at::Tensor& x) {
  LayerError error;
  for_window_batches(x, [&](int64_t begin, int64_t count) {
    const at::Tensor target = y0.narrow(0, begin, count);
    error.own += error_sum(layer.forward(x0.narrow(0, begin, count)), target);
    at::Tensor batch = x.narrow(0, begin, count);
    batch.copy_(layer.forward(batch));
    error.total += error_sum(batch, target);
  });
  return error;
}

/// Sums over positions.
struct Sums {
  double loss = 0, reference_loss = 0, kl = 0, same = 0;
};

/// Adds the positions of some rows. Both logits belong to the same rows; `next` [n, 1] are the
/// tokens that follow.
void add_positions(const at::Tensor& logits0, const at::Tensor& logits, const at::Tensor& next,
                   Sums& sums) {
  const at::Tensor log_p0 = logits0.to(at::kDouble).log_softmax(-1);
  const at::Tensor log_p = logits.to(at::kDouble).log_softmax(-1);
  sums.reference_loss -= log_p0.gather(1, next).sum().item<double>();
  sums.loss -= log_p.gather(1, next).sum().item<double>();
  sums.kl += (log_p0.exp() * (log_p0 - log_p)).sum().item<double>();
  sums.same += logits0.argmax(-1).eq(logits.argmax(-1)).sum().to(at::kDouble).item<double>();
}

Sums compare_logits(const OutputHead& head0, const at::Tensor& x0, const OutputHead& head,
                    const at::Tensor& x, const at::Tensor& windows) {
  Sums sums;
  const at::Tensor ids = windows.to(x.device());
  const int64_t maximum = compared_positions(head, x.device());
  for_positions(windows, maximum, !x.is_cpu(), [&](const Positions& p) {
    add_positions(head0.logits(p.of(x0)), head.logits(p.of(x)), p.next(ids), sums);
  });
  return sums;
}

/// Replaces sums over positions and tokens by those of all ranks.
void add_ranks(Sums& sums, std::vector<LayerError>& layers, Comm* comm) {
  if (comm == nullptr || comm->size() == 1) return;
  std::vector<double*> values{&sums.loss, &sums.reference_loss, &sums.kl, &sums.same};
  for (LayerError& error : layers) values.insert(values.end(), {&error.own, &error.total});
  at::Tensor all = at::empty({static_cast<int64_t>(values.size())}, at::kDouble);
  auto elements = all.accessor<double, 1>();
  for (std::size_t i = 0; i < values.size(); i++) elements[static_cast<int64_t>(i)] = *values[i];
  comm->sum(all);
  for (std::size_t i = 0; i < values.size(); i++) *values[i] = elements[static_cast<int64_t>(i)];
}

Perplexity perplexity_of(double loss, int64_t tokens, const Runnable& m) {
  const double value = std::exp(loss / static_cast<double>(tokens));
  if (!std::isfinite(value))
    fail("{}: the perplexity is not finite: the model's outputs overflow", m.source->directory());
  return {value, tokens};
}

}  // namespace

Divergences diverge(const Runnable& reference, const std::vector<Runnable>& models,
                    const at::Tensor& all_windows,
                    const std::function<void(int32_t layer)>& progress,
                    const at::TensorOptions& options, Comm* comm) {
  for (const Runnable& m : models) check_same_shape(reference, m);
  if (all_windows.size(1) < 2)
    fail("a window of {} tokens has no next token to predict, use 2 or more", all_windows.size(1));
  std::string folders = reference.source->directory();
  for (const Runnable& m : models) folders += "\n" + m.source->directory();
  const at::Tensor windows = windows_of_rank(all_windows, folders, comm);
  Divergences result;
  result.models.resize(models.size());
  at::Tensor x0 = embed_tokens(*reference.source, *reference.model, windows, options);
  std::vector<at::Tensor> states;
  for (const Runnable& m : models)
    states.push_back(embed_tokens(*m.source, *m.model, windows, options));
  const auto in_turn = static_cast<int32_t>(models.size() + 1);  // the reference comes first
  LayerReader reader(options.device(), in_turn * reference.model->desc().n_layers, [&](int32_t t) {
    const Runnable& m =
        t % in_turn == 0 ? reference : models[static_cast<std::size_t>(t % in_turn - 1)];
    return open_layer(*m.source, *m.model, t / in_turn, windows.size(1), options);
  });
  for (int32_t l = 0; l < reference.model->desc().n_layers; l++) {
    const at::Tensor y0 = layer_output(reader.next(), x0);
    for (std::size_t m = 0; m < models.size(); m++)
      result.models[m].layers.push_back(run_layer(reader.next(), x0, y0, states[m]));
    x0 = y0;
    if (progress) progress(l);
  }
  const int64_t tokens = all_windows.size(0) * (all_windows.size(1) - 1);
  const OutputHead head0(*reference.source, *reference.model, options);
  for (std::size_t m = 0; m < models.size(); m++) {
    Sums sums = compare_logits(head0, x0, OutputHead(*models[m].source, *models[m].model, options),
                               states[m], windows);
    add_ranks(sums, result.models[m].layers, comm);
    for (LayerError& error : result.models[m].layers) {
      error.own /= static_cast<double>(all_windows.numel());
      error.total /= static_cast<double>(all_windows.numel());
    }
    result.reference = perplexity_of(sums.reference_loss, tokens, reference);
    result.models[m].perplexity = perplexity_of(sums.loss, tokens, models[m]);
    result.models[m].kl = sums.kl / static_cast<double>(tokens);
    result.models[m].top1 = sums.same / static_cast<double>(tokens);
    models[m].source->check_unchanged();
  }
  reference.source->check_unchanged();
  return result;
}

}  // namespace aqhost
