#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "checkpoint/source.h"
#include "measure/evaluate.h"
#include "plugin/model.h"

namespace aqhost {

/// A checkpoint and its adapter; both are borrowed.
struct Runnable {
  const Source* source;
  const Model* model;
};

/// How far the hidden states after a layer are from those of the reference: |h - h0| / |h0|,
/// averaged over tokens.
struct LayerError {
  double own = 0;    // the layer alone, on the reference's input
  double total = 0;  // together with all earlier layers
};

/// How a model differs from the reference on the same windows.
struct Divergence {
  Perplexity perplexity;
  double kl = 0;    // KL(reference || model) of the next token in nats, averaged over positions
  double top1 = 0;  // share of positions where both find the same token most likely
  std::vector<LayerError> layers;
};

struct Divergences {
  Perplexity reference;
  std::vector<Divergence> models;
};

/// Runs `reference` and `models` side by side on windows [n, length] i64. The positions are those
/// that perplexity() counts. Everything up to the logits has the type and device of `options`; what
/// is computed from the logits is float64. Memory holds the weights of one layer at a time (of two
/// on a GPU), and the hidden states of every model. `progress`, if set, is called after each layer.
/// Throws an Error that names both folders if a model differs from the reference in family,
/// vocabulary, number of layers or hidden size, and an Error if outputs overflow. If `comm` has
/// several ranks, each calls this with all windows, and they share them.
Divergences diverge(const Runnable& reference, const std::vector<Runnable>& models,
                    const at::Tensor& windows, const std::function<void(int32_t layer)>& progress,
                    const at::TensorOptions& options = at::kFloat, Comm* comm = nullptr);

}  // namespace aqhost
