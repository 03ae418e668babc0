// LayerWalk through attention with more than two stages or several inputs of a stage. What the
// linear maps of the quantized layer see is recorded while the layer runs as a whole, and compared
// with what the walk has given to the solver.

#include <ATen/core/grad_mode.h>

#include <map>
#include <set>

#include "forward/batches.h"
#include "forward/distance.h"
#include "torch_doctest.h"
#include "walked_layer.h"

namespace aqhost {
namespace {

constexpr AttentionOf kKinds[] = {AttentionOf::kRope, AttentionOf::kLatent, AttentionOf::kLatentQ,
                                  AttentionOf::kDelta, AttentionOf::kFusedDelta};

/// The linear maps of attention.
std::vector<const Module*> attention_modules(const WalkedLayer& run) {
  std::vector<const Module*> modules;
  for (const Module& m : run.model->modules())
    if (m.key.layer == 0 && (m.key.role < AQ_ROLE_FFN_NORM || m.key.role >= AQ_ROLE_DELTA_QKV))
      modules.push_back(&m);
  return modules;
}

/// Walks with every linear map of attention quantized.
void walk(WalkedLayer& run, const std::string& algorithm, const at::Tensor& x,
          const at::Tensor& original = {}) {
  for (const Module* m : attention_modules(run)) run.plan_role(m->key.role, algorithm, 1);
  run.run(x.clone(), original.defined() ? original.clone() : original);
}

/// The inputs [tokens, features] f64 of the linear maps of attention, by role, when `layer` runs
/// all windows at once.
std::map<int32_t, at::Tensor> recorded(const WalkedLayer& run, Layer& layer, const at::Tensor& x) {
  std::map<int32_t, at::Tensor> inputs;
  for (const Module* m : attention_modules(run))
    layer.set_input_rounding(*m, [&inputs, m](const at::Tensor& input) {
      inputs[m->key.role] = input.flatten(0, 1).to(at::kDouble);
      return input;
    });
  const at::AutoGradMode on_this_thread(true);  // else windows run on threads of their own
  layer.attention(layer.attention_input(x));
  for (const Module* m : attention_modules(run)) layer.set_input_rounding(*m, nullptr);
  return inputs;
}

at::Tensor damped(const at::Tensor& inputs, double percdamp) {
  at::Tensor h = inputs.t().mm(inputs);
  h.diagonal().add_(h.diagonal().mean().item<double>() * percdamp);
  return h;
}

/// The values of a solution's codes, as a matrix.
at::Tensor values_of(const WalkedLayer& run, const Solution& solution) {
  const Module& m = *solution.planned->module;
  return at::tensor(run.format->dequantize(solution.matrix))
      .view({m.out_features, m.in_features})
      .to(at::kDouble);
}

}  // namespace

TEST_CASE("at 8 bits every kind of attention stays close, and each module beats rounding at 3") {
  for (const AttentionOf kind : kKinds)
    for (const int bits : {3, 8}) {
      CAPTURE(bits);
      WalkedLayer run(6, kind);
      run.format = int_format(bits, {{"group_size", -1}});
      const at::Tensor x = hidden_states(6, 40, 3);
      walk(run, "gptq", x);
      const MemorySource source = run.fake.source();
      const Layer before(source, *run.model, 0, 40);
      const at::Tensor unquantized = before.attention(before.attention_input(x));
      const at::Tensor quantized = run.layer->attention(run.layer->attention_input(x));
      const double error = distance(quantized, unquantized);
      CHECK(error < (bits == 8 ? 0.02 : 0.9));
      CHECK(error > (bits == 8 ? 1e-4 : 0.05));
      CHECK(distance(run.after, run.layer->forward(x)) < 1e-5);
      for (const Module* m : attention_modules(run)) {
        CAPTURE(m->key.role);
        const Solution& solution = run.results.at({m->key.role, AQ_EXPERT_NONE});
        CHECK(solution.tokens == 240);
        if (bits == 3) CHECK(solution.loss < solution.rtn_loss);
      }
    }
}

TEST_CASE("each module's Hessian is of its own inputs, whether one batch or several make it") {
  const int64_t several = kBatchTokens / 2 + 1;  // tokens, so that a batch has only one window
  for (const AttentionOf kind : kKinds)
    for (const int64_t tokens : {int64_t{40}, several}) {
      if (tokens == several && (kind == AttentionOf::kRope || kind == AttentionOf::kLatentQ))
        continue;  // takes long
      CAPTURE(tokens);
      WalkedLayer run(6, kind);
      const at::Tensor x = hidden_states(3, tokens, 1);
      walk(run, "rtn", x);
      auto inputs = recorded(run, *run.layer, x);
      for (const Module* m : attention_modules(run)) {
        CAPTURE(m->key.role);
        const Solution& solution = run.results.at({m->key.role, AQ_EXPERT_NONE});
        const at::Tensor h = damped(inputs.at(m->key.role), run.plan.settings.percdamp);
        const at::Tensor w = run.fake.tensor(m->key.role).to(at::kDouble);
        const at::Tensor d = w - values_of(run, solution);
        CHECK(solution.tokens == 3 * tokens);
        CHECK(solution.loss ==
              doctest::Approx(d.matmul(h).mul(d).sum().item<double>() / 2).epsilon(2e-4));
      }
    }
}

TEST_CASE("with error feedback each module is solved for its own inputs in both models") {
  for (const AttentionOf kind : kKinds) {
    WalkedLayer run(6, kind);
    run.format = int_format(8, {{"group_size", -1}});
    run.plan.settings.error_feedback = 0.75;
    const at::Tensor original = hidden_states(6, 40, 5);
    const at::Tensor x = original.matmul(at::eye(24) + hidden_states(1, 24, 6)[0] * 0.1);
    walk(run, "gptq", x, original);
    const MemorySource source = run.fake.source();
    Layer before(source, *run.model, 0, 40);
    auto inputs = recorded(run, *run.layer, x), originals = recorded(run, before, original);
    for (const Module* m : attention_modules(run)) {
      CAPTURE(m->key.role);
      const at::Tensor &in = inputs.at(m->key.role), &in0 = originals.at(m->key.role);
      const at::Tensor w = run.fake.tensor(m->key.role).to(at::kDouble);
      const at::Tensor change =
          0.75 * w.mm((in0 - in).t().mm(in)).mm(damped(in, run.plan.settings.percdamp).inverse());
      const at::Tensor got = values_of(run, run.results.at({m->key.role, AQ_EXPERT_NONE}));
      CHECK(change.norm().item<double>() > 0.05 * w.norm().item<double>());
      CHECK(distance(got, w + change) < 0.02);
    }
  }
}

TEST_CASE(
    "the states of the original model are those of the original layer, for fewer windows too") {
  for (const AttentionOf kind : kKinds)
    for (const bool sequential : {true, false}) {
      CAPTURE(sequential);
      WalkedLayer run(6, kind);
      run.plan.settings.sequential = sequential;
      const at::Tensor x = hidden_states(6, 40, 3);
      const at::Tensor original = x.narrow(0, 0, 4) + hidden_states(4, 40, 4) * 0.05;
      walk(run, "gptq", x, original);
      const MemorySource source = run.fake.source();
      const at::Tensor expected = Layer(source, *run.model, 0, 40).forward(original);
      CHECK(distance(run.original_after, expected) < 1e-5);
      CHECK(distance(run.after, run.layer->forward(x)) < 1e-5);
      CHECK(distance(run.after.narrow(0, 0, 4), expected) > 0.01);
    }
}

TEST_CASE("in every kind of attention the modules that share an input share its scale") {
  for (const AttentionOf kind : kKinds) {
    WalkedLayer run(6, kind);
    for (const Module* m : attention_modules(run)) run.round_inputs(m->key.role);
    const at::Tensor x = hidden_states(6, 40, 7);
    walk(run, "gptq", x);
    std::map<int32_t, float> scales;  // by the input's group
    for (const Module* m : attention_modules(run)) {
      CAPTURE(m->key.role);
      const float scale = run.results.at({m->key.role, AQ_EXPERT_NONE}).input_global;
      CHECK(scale != 1);
      CHECK(scales.try_emplace(m->input_group, scale).first->second == scale);
    }
    std::set<float> different;
    for (const auto& [group, scale] : scales) different.insert(scale);
    CHECK(different.size() == scales.size());
    CHECK(at::isfinite(run.after).all().item<bool>());
  }
}

}  // namespace aqhost
