// The sensitivity of modules is compared with the KL divergence that noise in their weights causes.
#include "allocate/sensitivity.h"

#include <map>

#include "base/error.h"
#include "forward/embedding_and_head.h"
#include "forward/fake_model.h"
#include "forward/layer.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

struct MeasuredModel {
  FakeModel fake;
  std::unique_ptr<const Model> model;
  at::Tensor windows = at::randint(50, {24, 30}, at::detail::createCPUGenerator(1), at::kLong);

  explicit MeasuredModel(void (*change)(FakeModel&) = [](FakeModel&) {}) {
    fake.ffn.shared_size = 12;
    fake.ffn.shared_gated = 1;
    change(fake);
    model = fake.open();
  }

  std::vector<double> sensitivity() const {
    RunObserver silent;
    MeasuredSteps steps;
    const std::unique_ptr<Comm> alone = Comm::alone();
    return output_sensitivity(fake.source(), *model, windows, at::kCPU, 1, *alone, steps, silent);
  }

  at::Tensor log_probabilities(Layer& layer, const at::Tensor& x) const {
    const MemorySource source = fake.source();
    return OutputHead(source, *model).logits(layer.forward(x)).to(at::kDouble).log_softmax(-1);
  }

  /// The KL divergence per token that noise in a module's weights causes, over what `sensitivity`
  /// predicts for it.
  double measured_over_predicted(const std::vector<const Module*>& modules,
                                 const std::vector<double>& sensitivity) const {
    const MemorySource source = fake.source();
    const at::Tensor x = embed_tokens(source, *model, windows);
    Layer layer(source, *model, 0, windows.size(1));
    const at::Tensor before = log_probabilities(layer, x);
    double squares = 0, shares = 0;  // of errors of outputs; the sum of sensitivities
    int64_t seen = 0;
    for (const Module* m : modules) {
      const at::Tensor noise =
          at::randn({m->out_features, m->in_features}, at::detail::createCPUGenerator(m->index)) *
          1e-3;
      layer.set_input_rounding(*m, [&, noise](const at::Tensor& input) {
        squares += at::linear(input, noise).square().sum(at::kDouble).item<double>();
        seen += input.numel() / input.size(-1);
        return input;
      });
      layer.set_weight(*m, layer.weight(*m) + noise);
      shares += sensitivity[m->index];
    }
    const at::Tensor after = log_probabilities(layer, x);
    const double measured = (before.exp() * (before - after)).sum().item<double>() /
                            static_cast<double>(windows.numel());
    return measured / (shares * squares / static_cast<double>(seen) / 2);
  }
};

/// Checks the prediction for the modules of each role that `tested` accepts. Returns their number.
std::size_t check_prediction(const MeasuredModel& run, bool (*tested)(const Module&)) {
  const std::vector<double> sensitivity = run.sensitivity();
  std::map<std::pair<int32_t, int32_t>, std::vector<const Module*>> alike;  // experts of a role
  for (const Module& m : run.model->modules())
    if (tested(m)) alike[{m.key.role, std::min(m.key.expert, 0)}].push_back(&m);
  for (const auto& [key, modules] : alike) {
    INFO("role ", key.first, " expert ", key.second);
    const double ratio = run.measured_over_predicted(modules, sensitivity);
    CHECK(ratio > 0.6);
    CHECK(ratio < 1.6);
  }
  return alike.size();
}

TEST_CASE("the sensitivity of experts predicts the divergence that their errors cause") {
  const MeasuredModel run;
  CHECK(check_prediction(run, [](const Module& m) {
          return m.key.role >= AQ_ROLE_FFN_GATE && m.key.role != AQ_ROLE_ROUTER;
        }) == 7);
}

TEST_CASE("the sensitivity of attention predicts the divergence that its errors cause") {
  // without experts, because small errors of attention can make a router choose others
  const MeasuredModel run([](FakeModel& fake) {
    fake.ffn.kind = AQ_FFN_DENSE;
    fake.ffn.shared_size = fake.ffn.shared_gated = 0;
  });
  CHECK(check_prediction(run, [](const Module& m) {
          return m.key.role >= AQ_ROLE_ATTN_Q && m.key.role <= AQ_ROLE_ATTN_O;
        }) == 4);
}

TEST_CASE("attention of every described kind lets gradients pass") {
  for (const auto change : {+[](FakeModel& fake) { fake.use_latent_attention(16); },
                            +[](FakeModel& fake) { fake.use_delta_rule(false); }}) {
    const MeasuredModel run(change);
    const std::vector<double> sensitivity = run.sensitivity();
    for (const Module& m : run.model->modules()) {
      INFO(m.name);
      CHECK((sensitivity[m.index] > 0) == (m.key.role != AQ_ROLE_ROUTER));
    }
  }
}

TEST_CASE("an attention that the adapter computes is refused") {
  const MeasuredModel run([](FakeModel& fake) { fake.wire_attention(); });
  CHECK_THROWS_WITH_AS(
      run.sensitivity(),
      "model \"fake\", layer 0: the adapter computes the attention itself, and gradients cannot "
      "pass it; use --score error or alpha",
      Error);
}

}  // namespace
}  // namespace aqhost
