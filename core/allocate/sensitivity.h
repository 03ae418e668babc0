#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "allocate/measured_steps.h"
#include "base/observer.h"
#include "checkpoint/source.h"
#include "plugin/model.h"
#include "run/comm.h"

namespace aqhost {

/// How much errors of each module's output change what the model predicts. For each module of the
/// model, in its order: the mean over all tokens of |g|^2 / out_features, where g is the gradient
/// of a sum of losses at the output of the module for that token (0 for a token that the module
/// does not see). The losses are those of next tokens that are drawn from the model's own
/// predictions, by `seed`. So the matrix of the mean g g^T is the Fisher information, and half of
/// this number times the mean squared error of the output, summed over its elements, is about the
/// KL divergence that an error in all directions causes, in nats per token. Routers have no
/// gradient: the choice of experts has none.
///
/// Runs windows [n, tokens] i64 through the model, keeps the hidden states before each layer, and
/// goes back through the layers one after another, so that only one layer's graph is in memory.
/// lm_head and then each layer, from the last on, are a step of `steps`, before which there must
/// have been none: sensitivity_steps() in all. To go on after some of them, only the states before
/// the other layers are computed again.
///
/// Ranks share the windows; the result is that of one, but for the order in which the squares of
/// windows are added. Everything is float32, on `device`. Memory: n x tokens x hidden size floats
/// for each layer, and the activations of one layer. Throws an Error if the adapter of the model
/// computes an attention itself, because gradients cannot pass it.
std::vector<double> output_sensitivity(const Source& source, const Model& model,
                                       const at::Tensor& windows, at::Device device, uint64_t seed,
                                       Comm& comm, MeasuredSteps& steps, RunObserver& observer);

int32_t sensitivity_steps(const Model& model);

}  // namespace aqhost
