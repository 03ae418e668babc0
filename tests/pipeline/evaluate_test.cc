#include "pipeline/evaluate.h"

#include <cmath>

#include "base/error.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

at::Tensor some_windows(int64_t count, int64_t length) {
  return (at::arange(count * length) * 7919 % 2048).reshape({count, length});
}

TEST_CASE("perplexity is the exponential of the mean loss, however windows are batched") {
  const OpenModel open({.layers = 1, .hidden = 16, .inner = 16, .heads = 2});
  const at::Tensor windows = some_windows(20, 500);  // 10,000 tokens: two batches
  const Perplexity all = perplexity(open.reader(), open.model(), windows, {});
  CHECK(all.tokens == 20 * 499);
  double loss = 0;
  for (int64_t w = 0; w < 20; w++)
    loss += std::log(perplexity(open.reader(), open.model(), windows.narrow(0, w, 1), {}).value);
  CHECK(std::log(all.value) == doctest::Approx(loss / 20).epsilon(1e-5));
}

TEST_CASE("the progress callback hears of every layer, in order") {
  const OpenModel open;
  std::vector<int32_t> heard;
  perplexity(open.reader(), open.model(), some_windows(1, 8),
             [&heard](int32_t layer) { heard.push_back(layer); });
  CHECK(heard == std::vector<int32_t>{0, 1});
}

TEST_CASE("a window of one token has nothing to predict") {
  const OpenModel open;
  CHECK_THROWS_WITH_AS(perplexity(open.reader(), open.model(), some_windows(2, 1), {}),
                       doctest::Contains("a window of 1 tokens has no next token"), Error);
}

}  // namespace
}  // namespace aqhost
