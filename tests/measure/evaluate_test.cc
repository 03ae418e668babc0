#include "measure/evaluate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "export/decoded_checkpoint.h"
#include "run/forward_pass.h"
#include "run/layer_reader.h"
#include "small_model.h"
#include "tensor/tensor.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

TEST_CASE("perplexity is the exponential of the mean loss, for any batches of windows") {
  const OpenModel open({.layers = 1, .hidden = 16, .inner = 16, .heads = 2});
  const at::Tensor windows = some_windows(20, 500);  // 10,000 tokens: two batches
  const Perplexity all = perplexity(open.reader(), open.model(), windows, {});
  CHECK(all.tokens == 20 * 499);
  double loss = 0;
  for (int64_t w = 0; w < 20; w++)
    loss += std::log(perplexity(open.reader(), open.model(), windows.narrow(0, w, 1), {}).value);
  CHECK(std::log(all.value) == doctest::Approx(loss / 20).epsilon(1e-5));
}

TEST_CASE("every position is met once, in order, for any maximum") {
  const at::Tensor windows = some_windows(5, 8);
  for (const bool across : {false, true})
    for (const int64_t maximum : {1, 3, 7, 10, 14, 1000}) {
      std::vector<at::Tensor> states, next;
      int64_t largest = 0;
      for_positions(windows, maximum, across, [&](const Positions& p) {
        states.push_back(p.of(windows.unsqueeze(2)));
        next.push_back(p.next(windows));
        largest = std::max(largest, states.back().size(0));
        CHECK((across || p.windows == 1));
      });
      CHECK(largest <= std::max(maximum, int64_t{1}));
      CHECK(at::cat(states).flatten().equal(windows.narrow(1, 0, 7).flatten()));
      CHECK(at::cat(next).flatten().equal(windows.narrow(1, 1, 7).flatten()));
    }
}

TEST_CASE("losses are the same for positions of one window and of several windows at a time") {
  const OpenModel open({.layers = 1});
  const at::Tensor windows = some_windows(6, 30);
  const at::Tensor x = run_layers(open.reader(), open.model(), windows, {});
  const OutputHead head(open.reader(), open.model());
  const at::Tensor losses = next_token_losses(head, x, windows);
  CHECK(losses.sizes() == at::IntArrayRef{6, 29});
  const at::Tensor log_p = head.logits(x.narrow(1, 0, 29)).log_softmax(-1);
  const at::Tensor expected = -log_p.gather(2, windows.narrow(1, 1, 29).unsqueeze(2)).squeeze(2);
  CHECK(at::allclose(losses, expected, 1e-5, 1e-5));
}

TEST_CASE("one thread and several threads decode an export to the same layer") {
  const OpenModel open;
  open.quantize(open.plan("{default: {group_size: 16}}", "rtn"), "out");
  const auto source = open_source(open / "out", registry());
  const auto model = registry().create_model(*source, "auto");
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    at::set_num_threads(1);
    const Layer one = open_layer(*source, *model, 1, 8, dtype);
    at::set_num_threads(3);
    const Layer three = open_layer(*source, *model, 1, 8, dtype);
    at::set_num_threads(1);
    for (const Module& module : model->modules()) {
      if (module.key.layer != 1) continue;
      const bool router = module.key.role == AQ_ROLE_ROUTER;
      const at::Tensor alone =
          read_tensor(*source, module.weight, {module.out_features, module.in_features},
                      router ? at::kFloat : dtype);
      CHECK(one.weight(module).equal(alone));
      CHECK(three.weight(module).equal(alone));
    }
  }
}

TEST_CASE("the progress callback is called for every layer, in order") {
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
