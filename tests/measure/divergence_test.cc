#include "measure/divergence.h"

#include <cmath>

#include "base/error.h"
#include "export/decoded_checkpoint.h"
#include "forward/embedding_and_head.h"
#include "run/forward_pass.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

/// Rounds the model of `open` to nearest.
struct Rounded {
  Rounded(const OpenModel& open, const std::string& recipe)
      : source((open.quantize(open.plan(recipe, "rtn"), "out"),
                open_source(open / "out", registry()))),
        model(registry().create_model(*source, "auto")) {}

  std::unique_ptr<Source> source;
  std::unique_ptr<const Model> model;
};

TEST_CASE("a model does not differ from itself") {
  const OpenModel open;
  const Runnable self{&open.reader(), &open.model()};
  const Divergences d = diverge(self, {self, self}, some_windows(3, 40), {});
  REQUIRE(d.models.size() == 2);
  for (const Divergence& m : d.models) {
    CHECK(m.kl == 0);
    CHECK(m.top1 == 1);
    REQUIRE(m.layers.size() == 2);
    for (const LayerError& e : m.layers) CHECK((e.own == 0 && e.total == 0));
    CHECK(m.perplexity.value == d.reference.value);
    CHECK(m.perplexity.tokens == 3 * 39);
  }
}

TEST_CASE("a divergence has the perplexities and states of plain runs, and KL by its definition") {
  std::string recipe;
  SUBCASE("weights") { recipe = "{default: {group_size: 16}}"; }
  SUBCASE("weights and activations") { recipe = "{default: {wq: int8, aq: int8, group_size: -1}}"; }
  const OpenModel open;
  const Rounded out(open, recipe);
  const at::Tensor windows = some_windows(5, 200);
  const Divergences all =
      diverge({&open.reader(), &open.model()}, {{out.source.get(), out.model.get()}}, windows, {});
  const Divergence& d = all.models.front();
  CHECK(all.reference.value ==
        doctest::Approx(perplexity(open.reader(), open.model(), windows, {}).value).epsilon(1e-5));
  CHECK(d.perplexity.value ==
        doctest::Approx(perplexity(*out.source, *out.model, windows, {}).value).epsilon(1e-5));

  const at::Tensor h0 = run_layers(open.reader(), open.model(), windows, {});
  const at::Tensor h = run_layers(*out.source, *out.model, windows, {});
  const double off = ((h - h0).norm(2, -1) / h0.norm(2, -1)).mean().item<double>();
  CHECK(d.layers.back().total == doctest::Approx(off).epsilon(1e-4));
  CHECK(d.layers.front().own == d.layers.front().total);  // the first layer has no earlier layers
  CHECK(d.layers.back().own < d.layers.back().total);

  const auto log_p = [&](const Source& source, const Model& model, const at::Tensor& states) {
    return OutputHead(source, model)
        .logits(states.slice(1, 0, 199))
        .to(at::kDouble)
        .log_softmax(-1);
  };
  const at::Tensor p0 = log_p(open.reader(), open.model(), h0);
  const at::Tensor p = log_p(*out.source, *out.model, h);
  const at::Tensor same = p0.argmax(-1).eq(p.argmax(-1)).to(at::kDouble);
  CHECK(d.kl == doctest::Approx((p0.exp() * (p0 - p)).sum(-1).mean().item<double>()).epsilon(1e-5));
  CHECK(d.top1 == doctest::Approx(same.mean().item<double>()));
  CHECK(d.top1 < 1);
}

TEST_CASE("models of different shapes are refused, and the message describes both") {
  const OpenModel a, b({.layers = 1});
  CHECK_THROWS_WITH_AS(
      diverge({&a.reader(), &a.model()}, {{&b.reader(), &b.model()}}, some_windows(1, 8), {}),
      doctest::Contains("(olmoe, 1 layers of 64, vocabulary 2048)"), Error);
}

}  // namespace
}  // namespace aqhost
