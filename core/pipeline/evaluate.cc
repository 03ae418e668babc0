#include "pipeline/evaluate.h"

#include <cmath>

#include "base/error.h"
#include "base/interrupt.h"
#include "export/decoded_checkpoint.h"
#include "forward/batches.h"
#include "quant/activations.h"

namespace aqhost {
Layer open_layer(const Source& source, const Model& model, int32_t index, int64_t length,
                 at::ScalarType dtype) {
  Layer layer(source, model, index, length, dtype);
  const auto* checkpoint = dynamic_cast<const DecodedCheckpoint*>(&source);
  if (checkpoint == nullptr) return layer;
  for (const Module& module : model.modules()) {
    const StoredModule* stored = checkpoint->find_module(module.name);
    if (module.key.layer != index || stored == nullptr || !stored->activations) continue;
    const auto rounder = std::make_shared<ActivationRounder>(stored->activations);
    rounder->set_global(checkpoint->input_global(*stored));
    layer.set_input_rounding(module, [rounder](const at::Tensor& x) { return (*rounder)(x); });
  }
  return layer;
}

at::Tensor run_layers(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress, at::ScalarType dtype,
                      const std::function<void(int32_t, int64_t, const Routing&)>& routed) {
  at::Tensor x = Ends(source, model, dtype).embed(windows);
  for (int32_t l = 0; l < model.desc().n_layers; l++) {
    const Layer layer = open_layer(source, model, l, windows.size(1), dtype);
    for_window_batches(x, [&](int64_t begin, int64_t count) {
      at::Tensor batch = x.narrow(0, begin, count);
      Routing routing;
      batch.copy_(layer.forward(batch, routed ? &routing : nullptr));
      if (routing.ids.defined()) routed(l, begin, routing);
    });
    if (progress) progress(l);
  }
  return x;
}

at::Tensor next_token_losses(const Ends& ends, const at::Tensor& x, const at::Tensor& window) {
  const int64_t n = window.size(0) - 1;
  const at::Tensor log_p = ends.logits(x.narrow(0, 0, n)).to(at::kFloat).log_softmax(-1);
  return -log_p.gather(1, window.narrow(0, 1, n).unsqueeze(1));
}

Perplexity perplexity(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress, at::ScalarType dtype) {
  const int64_t length = windows.size(1);
  if (length < 2) fail("a window of {} tokens has no next token to predict, use 2 or more", length);
  const at::Tensor x = run_layers(source, model, windows, progress, dtype);
  const Ends ends(source, model, dtype);
  double loss = 0;
  for (int64_t w = 0; w < windows.size(0); w++) {
    check_interrupt();
    loss += next_token_losses(ends, x[w], windows[w]).sum(at::kDouble).item<double>();
  }
  Perplexity result;
  result.tokens = windows.size(0) * (length - 1);
  result.value = std::exp(loss / static_cast<double>(result.tokens));
  if (!std::isfinite(result.value))
    fail("the perplexity is not finite: the model's outputs overflow");
  return result;
}

}  // namespace aqhost
