#include "measure/evaluate.h"

#include <cmath>

#include "base/error.h"
#include "run/forward_pass.h"

namespace aqhost {

Perplexity perplexity(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      const at::TensorOptions& options) {
  const int64_t length = windows.size(1);
  if (length < 2) fail("a window of {} tokens has no next token to predict, use 2 or more", length);
  const at::Tensor x = run_layers(source, model, windows, progress, options);
  const at::Tensor losses = next_token_losses(OutputHead(source, model, options), x, windows);
  Perplexity result;
  result.tokens = losses.numel();
  result.value =
      std::exp(losses.sum(at::kDouble).item<double>() / static_cast<double>(result.tokens));
  if (!std::isfinite(result.value))
    fail("the perplexity is not finite: the model's outputs overflow");
  source.check_unchanged();
  return result;
}

void check_window(const Model& model, int64_t window) {
  const int64_t longest = model.desc().max_positions;
  if (longest > 0 && window > longest)
    fail("--window {} is longer than the {} positions the model was made for", window, longest);
}

}  // namespace aqhost
