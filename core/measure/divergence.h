#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "checkpoint/source.h"
#include "measure/evaluate.h"
#include "plugin/model.h"

namespace aqhost {

/// A checkpoint and its adapter, borrowed.
struct Runnable {
  const Source* source;
  const Model* model;
};

/// How far hidden states after a layer are from the reference's: |h - h0| / |h0|, the mean over
/// tokens.
struct LayerError {
  double own = 0;    // the layer alone, on the reference's input
  double total = 0;  // together with all layers before
};

/// How a model differs from the reference on the same windows.
struct Divergence {
  Perplexity perplexity;
  double kl = 0;    // KL(reference || model) of the next token in nats, the mean over positions
  double top1 = 0;  // part of the positions where both hold the same token most likely
  std::vector<LayerError> layers;
};

struct Divergences {
  Perplexity reference;
  std::vector<Divergence> models;
};

/// Runs `reference` and `models` side by side over windows [n, length] i64; positions are those
/// that perplexity() counts. All up to the logits is of the type and on the device of `options`,
/// what is made of them in float64. Weights of one layer are in memory at a time (two on a GPU),
/// and the hidden states of every model. `progress`, if set, hears of each layer done. Error, with
/// both folders, where a model is not of the reference's family, vocabulary, layers and hidden
/// size, and where outputs overflow.
Divergences diverge(const Runnable& reference, const std::vector<Runnable>& models,
                    const at::Tensor& windows, const std::function<void(int32_t layer)>& progress,
                    const at::TensorOptions& options = at::kFloat);

}  // namespace aqhost
