#include "allocate/sensitivity.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include "base/error.h"
#include "forward/batches.h"
#include "forward/embedding_and_head.h"
#include "run/layer_reader.h"

namespace aqhost {
namespace {

constexpr int64_t kHeadRows = 512;  // tokens whose logits are in memory at once

/// The number of windows that go back through a layer at once.
int64_t windows_at_once(const at::Tensor& windows) {
  constexpr int64_t kGraphTokens = 2048;
  return std::max<int64_t>(1, kGraphTokens / windows.size(1));
}

void refuse_custom_attention(const Model& model) {
  for (int32_t l = 0; l < model.desc().n_layers; l++)
    if (model.attention(l, 1).kind == AQ_ATTN_CUSTOM)
      fail(
          "model \"{}\", layer {}: the adapter computes the attention itself, and gradients cannot "
          "pass it; use --score error or alpha",
          model.id(), l);
}

/// Draws a token for each row of probabilities [n, vocabulary]. Returns [n, 1] i64.
at::Tensor draw(const at::Tensor& probabilities, at::Generator& random) {
  const at::Tensor sums = probabilities.cumsum(1, at::kDouble);
  const at::Tensor place =
      at::rand({probabilities.size(0), 1}, random, at::kDouble).to(sums.device());
  return at::searchsorted(sums, place * sums.narrow(1, sums.size(1) - 1, 1))
      .clamp_max_(sums.size(1) - 1);
}

class BackwardPass {
 public:
  BackwardPass(const Source& source, const Model& model, const at::Tensor& windows,
               at::Device device, uint64_t seed, RunObserver& observer)
      : source_(source),
        model_(model),
        windows_(windows),
        options_(at::TensorOptions(device).dtype(at::kFloat)),
        random_(at::detail::createCPUGenerator(seed)),
        observer_(observer),
        result_(model.modules().size(), 0) {}

  std::vector<double> run() {
    const int32_t layers = model_.desc().n_layers;
    observer_.begin("measuring gradients", 2 * layers, "layers");
    at::Tensor x = embed_tokens(source_, model_, windows_, options_);
    {
      LayerReader reader(options_.device(), layers, [&](int32_t l) { return open(l); });
      for (int32_t l = 0; l < layers; l++) {
        observer_.update(l, fmt::format("layer {}", l));
        states_.push_back(x);
        x = forward(reader.next(), x);
      }
    }
    at::Tensor gradient = through_head(x);
    LayerReader reader(options_.device(), layers,
                       [&](int32_t turn) { return open(layers - 1 - turn); });
    for (int32_t l = layers - 1; l >= 0; l--) {
      observer_.update(2 * layers - 1 - l, fmt::format("layer {}", l));
      through_layer(reader.next(), l, gradient);
      states_.pop_back();
    }
    observer_.end();
    return std::move(result_);
  }

 private:
  Layer open(int32_t l) const { return open_layer(source_, model_, l, windows_.size(1), options_); }

  static at::Tensor forward(const Layer& layer, const at::Tensor& x) {
    at::Tensor out = at::empty_like(x);
    for_window_batches(x, [&](int64_t begin, int64_t count) {
      out.narrow(0, begin, count).copy_(layer.forward(x.narrow(0, begin, count)));
    });
    return out;
  }

  double mean_over_tokens(double sum, int64_t features) const {
    return sum / static_cast<double>(windows_.numel()) / static_cast<double>(features);
  }

  /// The gradient at the output x of the last layer.
  at::Tensor through_head(const at::Tensor& x) {
    const OutputHead head(source_, model_, options_);
    at::Tensor gradient = at::empty_like(x), rows = gradient.flatten(0, 1);
    const at::Tensor inputs = x.flatten(0, 1);
    double squares = 0;
    for_batches(inputs.size(0), kHeadRows, [&](int64_t begin, int64_t count) {
      at::Tensor input = inputs.narrow(0, begin, count).clone(), logits;
      {
        const c10::AutoGradMode gradients(true);
        logits = head.logits(input.requires_grad_());
      }
      // the gradient of -log p(token) is p minus 1 at the token
      at::Tensor g = logits.detach().softmax(-1);
      const at::Tensor token = draw(g, random_);
      g.scatter_add_(1, token, at::full_like(token, -1, g.options()));
      squares += g.square().sum(at::kDouble).item<double>();
      logits.backward(g);
      rows.narrow(0, begin, count).copy_(input.grad());
    });
    for (std::size_t i = 0; i < result_.size(); i++)
      if (model_.modules()[i].key.role == AQ_ROLE_LM_HEAD)
        result_[i] = mean_over_tokens(squares, head.vocab_size());
    return gradient;
  }

  /// Replaces the gradient at the output of a layer by that at its input.
  void through_layer(Layer& layer, int32_t index, at::Tensor& gradient) {
    const auto& modules = model_.modules();
    std::vector<at::Tensor> squares(modules.size());
    for (std::size_t i = 0; i < modules.size(); i++) {
      if (modules[i].key.layer != index) continue;
      squares[i] = at::zeros({}, options_.dtype(at::kDouble));
      layer.see_output(modules[i], [sum = squares[i]](const at::Tensor& y) {
        if (y.requires_grad())
          y.register_hook([sum](const at::Tensor& g) {
            const at::NoGradGuard no_grad;
            at::Tensor(sum).add_(g.square().sum(at::kDouble));
          });
      });
    }
    for_batches(gradient.size(0), windows_at_once(windows_), [&](int64_t begin, int64_t count) {
      at::Tensor input = states_.back().narrow(0, begin, count).clone(), out;
      {
        const c10::AutoGradMode gradients(true);
        out = layer.forward(input.requires_grad_());
      }
      at::Tensor part = gradient.narrow(0, begin, count);
      out.backward(part.clone());
      part.copy_(input.grad());
    });
    for (std::size_t i = 0; i < modules.size(); i++)
      if (squares[i].defined())
        result_[i] = mean_over_tokens(squares[i].item<double>(), modules[i].out_features);
  }

  const Source& source_;
  const Model& model_;
  const at::Tensor windows_;
  const at::TensorOptions options_;
  at::Generator random_;
  RunObserver& observer_;
  std::vector<at::Tensor> states_;  // before each layer that the gradient has not passed yet
  std::vector<double> result_;
};

}  // namespace

std::vector<double> output_sensitivity(const Source& source, const Model& model,
                                       const at::Tensor& windows, at::Device device, uint64_t seed,
                                       RunObserver& observer) {
  refuse_custom_attention(model);
  return BackwardPass(source, model, windows, device, seed, observer).run();
}

}  // namespace aqhost
