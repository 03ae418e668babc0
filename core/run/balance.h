#pragma once

#include <ATen/ATen.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "checkpoint/source.h"
#include "plugin/model.h"

namespace aqhost {

/// What the original makes of windows.
struct WindowUse {
  std::vector<at::Tensor> experts;  // of each layer with experts: [windows, experts] f32, tokens
  at::Tensor loss;                  // [windows] f64, the mean of next tokens
};

/// Runs `source` over windows [n, length] i64, in the type and on the device of `options`.
/// `progress`, if set, hears of each layer done.
WindowUse window_use(const Source& source, const Model& model, const at::Tensor& windows,
                     const at::TensorOptions& options,
                     const std::function<void(int32_t layer)>& progress);

/// How unevenly experts are used: the standard deviation of their token counts divided by the mean;
/// 0 where all have the same count.
double spread(const std::vector<int64_t>& tokens);

/// How unevenly `chosen` windows use experts: spread(), the mean over layers.
double spread_of(const WindowUse& use, const std::vector<int64_t>& chosen);

/// Chooses windows that even out how often experts are used, weighted by their likelihood: one
/// after the other, each time the one with which mean loss + spread_of() / 0.1 is least; quota[f]
/// of those with file[w] = f. Returned in rising order. This is expert-balanced self-sampling
/// (MoEQuant, arXiv:2505.03804, section 4.1), which weighs perplexity by exp(spread / temperature),
/// of texts that are there instead of generated ones.
std::vector<int64_t> choose_balanced(const WindowUse& use, const std::vector<std::size_t>& file,
                                     std::vector<int64_t> quota);

}  // namespace aqhost
