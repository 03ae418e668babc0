#include "run/forward_pass.h"

#include <algorithm>

#include "forward/batches.h"
#include "run/layer_reader.h"

namespace aqhost {
namespace {

constexpr int64_t kMaxLogits = int64_t{1} << 27;  // 512 MiB of float32

}  // namespace

at::Tensor layer_output(const Layer& layer, const at::Tensor& x) {
  at::Tensor out = at::empty_like(x);
  for_window_batches(x, [&](int64_t begin, int64_t count) {
    out.narrow(0, begin, count).copy_(layer.forward(x.narrow(0, begin, count)));
  });
  return out;
}

at::Tensor run_layers(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      const at::TensorOptions& options,
                      const std::function<void(int32_t, int64_t, const Routing&)>& routed) {
  at::Tensor x = embed_tokens(source, model, windows, options);
  const int32_t layers = model.desc().n_layers;
  LayerReader reader(options.device(), layers, [&](int32_t l) {
    return open_layer(source, model, l, windows.size(1), options);
  });
  for (int32_t l = 0; l < layers; l++) {
    const Layer& layer = reader.next();
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

void for_positions(const at::Tensor& windows, int64_t maximum, bool across,
                   const std::function<void(const Positions&)>& body) {
  const int64_t n = windows.size(0), positions = windows.size(1) - 1;
  if (positions < 1) return;
  const int64_t together = across ? std::max<int64_t>(1, maximum / positions) : 1;
  for_batches(n, together, [&](int64_t window, int64_t count) {
    for_batches(positions, std::max<int64_t>(1, maximum), [&](int64_t begin, int64_t tokens) {
      body({window, count, begin, tokens});
    });
  });
}

int64_t compared_positions(const OutputHead& head, at::Device device) {
  constexpr int64_t kLogitRows = 128;
  constexpr int64_t kGpuLogits = int64_t{1} << 25;
  return device.is_cpu() ? kLogitRows : kGpuLogits / head.vocab_size();
}

at::Tensor next_token_losses(const OutputHead& head, const at::Tensor& x,
                             const at::Tensor& windows) {
  const at::Tensor ids = windows.to(x.device());
  at::Tensor losses =
      at::empty({windows.size(0), windows.size(1) - 1}, x.options().dtype(at::kFloat));
  // on a CPU, the logits of one window stay in its cache; a GPU needs many windows at once
  for_positions(windows, kMaxLogits / head.vocab_size(), !x.is_cpu(), [&](const Positions& p) {
    const at::Tensor log_p = head.logits(p.of(x)).to(at::kFloat).log_softmax(-1);
    losses.narrow(0, p.window, p.windows)
        .narrow(1, p.begin, p.count)
        .copy_(log_p.gather(1, p.next(ids)).neg_().view({p.windows, p.count}));
  });
  return losses.cpu();
}

}  // namespace aqhost
