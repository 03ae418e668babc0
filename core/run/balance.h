#pragma once

#include <ATen/ATen.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// How the original model uses its experts on windows, and how well it predicts them.
struct WindowUse {
  std::vector<at::Tensor> experts;  // per layer with experts: token counts [windows, experts] f32
  at::Tensor loss;                  // [windows] f64, the mean over next tokens
};

/// Runs `source` on windows [n, length] i64, in the type and on the device of `options`.
/// `progress`, if set, is called after each layer.
WindowUse window_use(const Source& source, const Model& model, const at::Tensor& windows,
                     const at::TensorOptions& options,
                     const std::function<void(int32_t layer)>& progress);

/// How unevenly experts are used: the standard deviation of their token counts, divided by the
/// mean; 0 if all counts are equal.
double spread(const std::vector<int64_t>& tokens);

/// How unevenly the `chosen` windows use experts: the mean of spread() over layers.
double spread_of(const WindowUse& use, const std::vector<int64_t>& chosen);

/// Chooses windows so that experts are used evenly, while likely windows are preferred: one window
/// after the other, each time the one for which the mean loss + spread_of() / 0.1 of the chosen
/// windows is smallest. Of the windows w with file[w] = f it chooses quota[f]. Returns them in
/// rising order. This is expert-balanced self-sampling (MoEQuant, arXiv:2505.03804, section 4.1),
/// which weighs perplexity by exp(spread / temperature); but it chooses from given texts, where
/// MoEQuant generates them.
std::vector<int64_t> choose_balanced(const WindowUse& use, const std::vector<std::size_t>& file,
                                     std::vector<int64_t> quota);

}  // namespace aqhost
