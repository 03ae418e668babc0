#include "allocate/sensitivity.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include "base/error.h"
#include "forward/batches.h"
#include "forward/embedding_and_head.h"
#include "run/forward_pass.h"
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

/// Draws a token for each row of probabilities [n, vocabulary] by a number [n] f64 from 0 to 1.
/// Returns [n, 1] i64.
at::Tensor draw(const at::Tensor& probabilities, const at::Tensor& numbers) {
  const at::Tensor sums = probabilities.cumsum(1, at::kDouble);
  const at::Tensor place = numbers.to(sums.device()).unsqueeze(1);
  return at::searchsorted(sums, place * sums.narrow(1, sums.size(1) - 1, 1))
      .clamp_max_(sums.size(1) - 1);
}

class BackwardPass {
 public:
  BackwardPass(const Source& source, const Model& model, const at::Tensor& windows,
               at::Device device, uint64_t seed, Comm& comm, MeasuredSteps& steps,
               RunObserver& observer)
      : source_(source),
        model_(model),
        all_windows_(windows),
        windows_(comm.dealt(windows)),
        random_(comm.dealt(
            at::rand(windows.sizes(), at::detail::createCPUGenerator(seed), at::kDouble))),
        options_(at::TensorOptions(device).dtype(at::kFloat)),
        comm_(comm),
        steps_(steps),
        observer_(observer),
        result_(model.modules().size(), 0) {}

  std::vector<double> run() {
    const int32_t layers = model_.desc().n_layers;
    const int32_t finished = std::min(steps_.finished(), sensitivity_steps(model_));
    for (int32_t step = 0; step < finished; step++)
      set_values(step, steps_.result(step).get<std::vector<double>>());
    // the gradient has not passed the layers before this one
    const int32_t end = finished == 0 ? layers : layers + 1 - finished;
    if (finished == sensitivity_steps(model_)) return std::move(result_);
    observer_.begin("measuring gradients", 2 * layers, "layers");
    const at::Tensor x = forward(finished == 0 ? layers : end - 1);
    at::Tensor gradient;
    if (finished == 0) {
      gradient = through_head(x);
      finish_step(0, gradient);
    } else {
      states_.push_back(x);
      gradient = comm_.dealt(steps_.state()).to(options_.device());
    }
    LayerReader reader(options_.device(), end, [&](int32_t turn) { return open(end - 1 - turn); });
    for (int32_t l = end - 1; l >= 0; l--) {
      observer_.update(2 * layers - 1 - l, fmt::format("layer {}", l));
      through_layer(reader.next(), l, gradient);
      states_.pop_back();
      finish_step(layers - l, gradient);
    }
    observer_.end();
    return std::move(result_);
  }

 private:
  /// All windows on every rank, of tensors that have those of the rank; on the CPU.
  at::Tensor of_all_ranks(const at::Tensor& own) const {
    std::vector<at::Tensor> windows;
    std::vector<int> owners;
    for (int64_t w = 0; w < all_windows_.size(0); w++) {
      owners.push_back(static_cast<int>(w % comm_.size()));
      windows.push_back(owners.back() == comm_.rank()
                            ? own[w / comm_.size()]
                            : at::empty({own.size(1), own.size(2)}, own.options()));
    }
    comm_.share(windows, owners);
    return at::stack(windows).cpu();
  }

  /// The modules of a step: those outside the layers first.
  std::vector<std::size_t> modules_of(int32_t step) const {
    return modules_of_layer(model_, model_.desc().n_layers - step);
  }

  void set_values(int32_t step, const std::vector<double>& values) {
    auto next = values.begin();
    for (const std::size_t i : modules_of(step)) result_[i] = *next++;
  }

  /// Adds up the values of all ranks. `gradient` is what the next step goes on with.
  void finish_step(int32_t step, const at::Tensor& gradient) {
    std::vector<double> values;
    for (const std::size_t i : modules_of(step)) values.push_back(result_[i]);
    comm_.sum(values);
    set_values(step, values);
    const bool last = step + 1 == sensitivity_steps(model_);
    steps_.finish(values, last ? at::Tensor() : of_all_ranks(gradient));
  }

  Layer open(int32_t l) const {
    return open_layer(source_, model_, l, all_windows_.size(1), options_);
  }

  /// The hidden states behind the first `layers` layers. Keeps those before each of them.
  at::Tensor forward(int32_t layers) {
    at::Tensor x = at::empty({0, windows_.size(1), model_.desc().hidden_size}, options_);
    if (windows_.size(0) > 0) x = embed_tokens(source_, model_, windows_, options_);
    LayerReader reader(options_.device(), layers, [&](int32_t l) { return open(l); });
    for (int32_t l = 0; l < layers; l++) {
      observer_.update(l, fmt::format("layer {}", l));
      states_.push_back(x);
      x = layer_output(reader.next(), x);
    }
    return x;
  }

  double mean_over_tokens(double sum, int64_t features) const {
    return sum / static_cast<double>(all_windows_.numel()) / static_cast<double>(features);
  }

  /// The gradient at the output x of the last layer.
  at::Tensor through_head(const at::Tensor& x) {
    const OutputHead head(source_, model_, options_);
    at::Tensor gradient = at::empty_like(x), rows = gradient.flatten(0, 1);
    const at::Tensor inputs = x.flatten(0, 1), numbers = random_.flatten();
    double squares = 0;
    for_batches(inputs.size(0), kHeadRows, [&](int64_t begin, int64_t count) {
      at::Tensor input = inputs.narrow(0, begin, count).clone(), logits;
      {
        const c10::AutoGradMode gradients(true);
        logits = head.logits(input.requires_grad_());
      }
      // the gradient of -log p(token) is p minus 1 at the token
      at::Tensor g = logits.detach().softmax(-1);
      const at::Tensor token = draw(g, numbers.narrow(0, begin, count));
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
    for_batches(gradient.size(0), windows_at_once(all_windows_), [&](int64_t begin, int64_t count) {
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
  const at::Tensor all_windows_, windows_;  // of all ranks, and of this one
  const at::Tensor random_;                 // a number for each token
  const at::TensorOptions options_;
  Comm& comm_;
  MeasuredSteps& steps_;
  RunObserver& observer_;
  std::vector<at::Tensor> states_;  // before each layer that the gradient has not passed yet
  std::vector<double> result_;
};

}  // namespace

int32_t sensitivity_steps(const Model& model) { return model.desc().n_layers + 1; }

std::vector<double> output_sensitivity(const Source& source, const Model& model,
                                       const at::Tensor& windows, at::Device device, uint64_t seed,
                                       Comm& comm, MeasuredSteps& steps, RunObserver& observer) {
  refuse_custom_attention(model);
  return BackwardPass(source, model, windows, device, seed, comm, steps, observer).run();
}

}  // namespace aqhost
