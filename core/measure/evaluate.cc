#include "measure/evaluate.h"

#include <cmath>
#include <span>
#include <vector>

#include "base/counted.h"
#include "base/error.h"
#include "base/sha256.h"
#include "run/forward_pass.h"
#include "tensor/tensor.h"

namespace aqhost {

Perplexity perplexity(const Source& source, const Model& model, const at::Tensor& windows,
                      const std::function<void(int32_t layer)>& progress,
                      const at::TensorOptions& options, Comm* comm) {
  const int64_t length = windows.size(1);
  if (length < 2) fail("a window of {} tokens has no next token to predict, use 2 or more", length);
  const at::Tensor own = windows_of_rank(windows, source.directory(), comm);
  const at::Tensor x = run_layers(source, model, own, progress, options);
  at::Tensor loss = next_token_losses(OutputHead(source, model, options), x, own).sum(at::kDouble);
  if (comm != nullptr) comm->sum(loss);
  Perplexity result;
  result.tokens = windows.size(0) * (length - 1);
  result.value = std::exp(loss.item<double>() / static_cast<double>(result.tokens));
  if (!std::isfinite(result.value))
    fail("the perplexity is not finite: the model's outputs overflow");
  source.check_unchanged();
  return result;
}

at::Tensor windows_of_rank(const at::Tensor& windows, const std::string& run, Comm* comm) {
  if (comm == nullptr || comm->size() == 1) return windows;
  const at::Tensor ids = windows.contiguous();
  const std::string own = fmt::format("{} {} {}", sha256_of(std::as_bytes(span_of<int64_t>(ids))),
                                      windows.size(1), run);
  const std::vector<std::string> all = comm->all_gather(own);
  for (std::size_t rank = 1; rank < all.size(); rank++)
    if (all[rank] != all[0])
      fail(
          "the processes of a run must be started alike, but rank {} runs another model, or on "
          "other windows, than rank 0: give the same --model, --text, --window and --against",
          rank);
  if (windows.size(0) < comm->size())
    fail("{} cannot be shared by {} processes; use fewer processes, or a smaller --window",
         counted(windows.size(0), "window"), comm->size());
  return comm->dealt(windows);
}

void check_window(const Model& model, int64_t window) {
  const int64_t longest = model.desc().max_positions;
  if (longest > 0 && window > longest)
    fail("--window {} is longer than the {} positions the model was made for", window, longest);
}

}  // namespace aqhost
