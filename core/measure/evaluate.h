#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <string>

#include "checkpoint/source.h"
#include "plugin/model.h"
#include "run/comm.h"

namespace aqhost {

struct Perplexity {
  double value = 0;    // exp of the mean loss
  int64_t tokens = 0;  // number of predicted tokens: window - 1 for each window
};

/// The perplexity of next tokens inside each window. Everything up to the logits has the type and
/// device of `options`; the loss is float32, and sums are double. If `comm` has several ranks, each
/// calls this with all windows, and they share them.
Perplexity perplexity(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      const at::TensorOptions& options = at::kFloat, Comm* comm = nullptr);

/// The windows [n, length] of this rank, which take turns; all of them if `comm` is null. `run`
/// says what is run on them. Throws an Error if there are fewer windows than ranks, or if another
/// rank has other windows or another `run`.
at::Tensor windows_of_rank(const at::Tensor& windows, const std::string& run, Comm* comm);

/// Throws an Error if windows are longer than the model was made for.
void check_window(const Model& model, int64_t window);

}  // namespace aqhost
