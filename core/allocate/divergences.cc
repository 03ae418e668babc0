#include "allocate/divergences.h"

#include <algorithm>
#include <map>
#include <span>
#include <utility>

#include "forward/embedding_and_head.h"
#include "run/forward_pass.h"
#include "run/layer_reader.h"

namespace aqhost {
namespace {

constexpr int64_t kMaximumWindows = 16, kRunsOfWindows = 2;

/// What of the parts lies in a layer: the modules of each.
using LayerParts = std::vector<std::vector<std::size_t>>;

/// By layer; what lies outside the layers comes last.
std::vector<LayerParts> parts_by_layer(const Model& model,
                                       const std::vector<AllocatedGroup>& parts) {
  const int32_t layers = model.desc().n_layers;
  std::vector<LayerParts> by_layer(static_cast<std::size_t>(layers) + 1);
  for (const AllocatedGroup& part : parts) {
    std::map<int32_t, std::vector<std::size_t>> modules;
    for (const std::size_t i : part.modules) {
      const int32_t layer = model.modules()[i].key.layer;
      modules[layer < 0 ? layers : layer].push_back(i);
    }
    for (auto& [layer, of_layer] : modules)
      by_layer[static_cast<std::size_t>(layer)].push_back(std::move(of_layer));
  }
  return by_layer;
}

class PartDivergences {
 public:
  PartDivergences(const MeasureSetup& setup, std::vector<LayerParts> parts, const at::Tensor& text,
                  int32_t first)
      : setup_(setup),
        parts_(std::move(parts)),
        text_(text),
        ids_(text.to(setup.options.device())),
        options_(setup.options.dtype(at::kFloat)),
        head_(setup.source, setup.model, options_) {
    for (const LayerParts& of_layer : parts_)
      for (std::size_t p = 0; p < of_layer.size(); p++)
        for (const std::size_t i : of_layer[p]) part_of_[i] = p;
    const int32_t layers = setup.model.desc().n_layers;
    at::Tensor x = embed_tokens(setup.source, setup.model, text, options_);
    LayerReader reader(options_.device(), layers, [&](int32_t l) { return open(l); });
    for (int32_t l = 0; l < layers; l++) {
      if (l == first) x_ = x;
      x = layer_output(reader.next(), x);
    }
    last_ = x;
  }

  /// Takes the weight of a module of the layer that is measured next.
  void take(std::size_t candidate, const NewWeight& weight) {
    const std::size_t module = weight.module->index;
    if (is_own(part_of_.at(module), candidate)) weights_[{candidate, module}] = weight.values;
  }

  /// Measures the parts of the next layer, or with the number of layers those outside them: the
  /// divergence of each in each candidate, [part][candidate] in one row.
  std::vector<double> measure(int32_t layer) {
    std::vector<Variant> variants = changed(layer);
    std::vector<double> values(parts_[static_cast<std::size_t>(layer)].size() * candidates(), 0);
    if (layer == setup_.model.desc().n_layers) {
      OutputHead head = head_;
      for (Variant& v : variants) {
        head.set_weight(weights_.at({v.candidate, v.modules->front()}));
        compare(head, {&v, 1});
      }
    } else {
      run_behind(layer, variants);
      compare(head_, variants);
    }
    const auto positions = static_cast<double>(text_.size(0) * (text_.size(1) - 1));
    for (const Variant& v : variants) values[v.number] = v.divergence / positions;
    weights_.clear();
    setup_.comm.sum(values);
    return values;
  }

 private:
  /// The model with one part of a layer in the format of a candidate.
  struct Variant {
    std::size_t number, candidate;  // the first in the row that measure() returns
    const std::vector<std::size_t>* modules;
    at::Tensor x;           // behind the layers that it has passed
    double divergence = 0;  // the sum over positions
  };

  std::size_t candidates() const { return setup_.candidates.size(); }
  /// Whether this rank measures a part of a layer in a candidate.
  bool is_own(std::size_t part, std::size_t candidate) const {
    const auto ranks = static_cast<std::size_t>(setup_.comm.size());
    return (part * candidates() + candidate) % ranks ==
           static_cast<std::size_t>(setup_.comm.rank());
  }
  Layer open(int32_t l) const {
    return open_layer(setup_.source, setup_.model, l, text_.size(1), options_);
  }

  /// The variants of this rank. Those of a layer have passed it, and so has the original.
  std::vector<Variant> changed(int32_t l) {
    const LayerParts& parts = parts_[static_cast<std::size_t>(l)];
    std::vector<Variant> variants;
    for (std::size_t p = 0; p < parts.size(); p++)
      for (std::size_t c = 0; c < candidates(); c++)
        if (is_own(p, c) && setup_.candidates[c].modules[parts[p].front()].format)
          variants.push_back({p * candidates() + c, c, &parts[p], last_});
    if (l == setup_.model.desc().n_layers) return variants;
    Layer layer = open(l);
    for (Variant& v : variants) {
      std::vector<at::Tensor> before;
      for (const std::size_t i : *v.modules) {
        const Module& module = setup_.model.modules()[i];
        before.push_back(layer.weight(module).clone());
        layer.set_weight(module, weights_.at({v.candidate, i}));
      }
      v.x = layer_output(layer, x_);
      for (std::size_t i = 0; i < before.size(); i++)
        layer.set_weight(setup_.model.modules()[(*v.modules)[i]], before[i]);
    }
    x_ = layer_output(layer, x_);
    return variants;
  }

  /// Runs the variants through the layers behind one.
  void run_behind(int32_t layer, std::vector<Variant>& variants) const {
    const int32_t layers = setup_.model.desc().n_layers;
    if (variants.empty()) return;
    LayerReader reader(options_.device(), layers - 1 - layer,
                       [&](int32_t turn) { return open(layer + 1 + turn); });
    for (int32_t l = layer + 1; l < layers; l++) {
      const Layer& next = reader.next();
      for (Variant& v : variants) v.x = layer_output(next, v.x);
    }
  }

  /// Adds to each variant its divergence from the original model.
  void compare(const OutputHead& head, std::span<Variant> variants) const {
    if (variants.empty()) return;
    for_positions(ids_, compared_positions(head, ids_.device()), !ids_.is_cpu(),
                  [&](const Positions& p) {
                    const auto log_p_of = [&](const OutputHead& of, const at::Tensor& x) {
                      return of.logits(p.of(x)).to(at::kDouble).log_softmax(-1);
                    };
                    const at::Tensor log_p0 = log_p_of(head_, last_), p0 = log_p0.exp();
                    for (Variant& v : variants)
                      v.divergence += (p0 * (log_p0 - log_p_of(head, v.x))).sum().item<double>();
                  });
  }

  const MeasureSetup& setup_;
  const std::vector<LayerParts> parts_;
  const at::Tensor text_, ids_;  // the same windows [n, tokens] i64; ids_ on the device
  const at::TensorOptions options_;
  const OutputHead head_;
  std::map<std::size_t, std::size_t> part_of_;  // module -> its part in its layer
  std::map<std::pair<std::size_t, std::size_t>, at::Tensor> weights_;  // candidate, module
  at::Tensor x_, last_;  // of the original model: before the next layer, and behind the last one
};

/// Sets the scores of the parts of a layer.
void set_scores(Scores& scores, const LayerParts& parts, const std::vector<double>& values) {
  auto next = values.begin();
  for (const auto& modules : parts)
    for (auto& of_candidate : scores) of_candidate[modules.front()] = *next++;
}

}  // namespace

Scores measure_divergences(const MeasureSetup& setup, const std::vector<AllocatedGroup>& parts,
                           const at::Tensor& windows, const at::Tensor& text,
                           MeasuredSteps& steps) {
  const std::vector<LayerParts> by_layer = parts_by_layer(setup.model, parts);
  Scores scores(setup.candidates.size(), std::vector<double>(setup.plan.modules.size(), 0));
  const int32_t finished = steps.finished();
  for (int32_t l = 0; l < finished; l++)
    set_scores(scores, by_layer[static_cast<std::size_t>(l)],
               steps.result(l).get<std::vector<double>>());
  if (finished > setup.model.desc().n_layers) return scores;
  setup.observer.begin("measuring divergences", setup.model.desc().n_layers, "layers");
  PartDivergences measured(setup, by_layer, text, finished);
  const CandidateSink sink{
      [](std::size_t /*candidate*/, const Solution& /*solution*/) {},
      [&](std::size_t c, const NewWeight& weight) { measured.take(c, weight); }};
  walk_candidates(setup, windows, finished, sink, [&](int32_t l) {
    const std::vector<double> values = measured.measure(l);
    set_scores(scores, by_layer[static_cast<std::size_t>(l)], values);
    steps.finish(values);
  });
  setup.observer.end();
  return scores;
}

int64_t divergence_windows(const MeasureSetup& setup, const std::vector<AllocatedGroup>& parts,
                           int64_t windows) {
  const auto formats =
      std::count_if(setup.candidates.begin(), setup.candidates.end(),
                    [](const Plan& candidate) { return candidate.quantized_weights() > 0; });
  const int64_t layers = setup.model.desc().n_layers;
  int64_t runs = 0, layer = 0;  // of one window through one layer; lm_head counts as a layer
  for (const LayerParts& of_layer : parts_by_layer(setup.model, parts))
    runs += static_cast<int64_t>(of_layer.size()) * formats * (layers + 1 - layer++);
  const int64_t most = kRunsOfWindows * windows * layers / std::max<int64_t>(1, runs);
  return std::clamp<int64_t>(most, 1, kMaximumWindows);
}

}  // namespace aqhost
