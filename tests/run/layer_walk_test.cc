#include "run/layer_walk.h"

#include <map>
#include <string>

#include "base/error.h"
#include "other_device.h"
#include "torch_doctest.h"
#include "walked_layer.h"

namespace aqhost {
namespace {

/// The FFN's input for every token, in the unquantized layer.
at::Tensor ffn_inputs(const WalkedLayer& run, const at::Tensor& x) {
  const MemorySource source = run.fake.source();
  const Layer layer(source, *run.model, 0, x.size(1));
  const at::Tensor a = layer.attention_input(x);
  return layer.ffn_input(x + layer.attention(a)).flatten(0, 1);
}

/// The loss: 1/2 sum of d H d^T, with H damped by percdamp.
double loss_of(const at::Tensor& d, at::Tensor h, double percdamp) {
  h = h.clone();
  h.diagonal().add_(h.diagonal().mean().item<double>() * percdamp);
  return d.matmul(h).mul(d).sum().item<double>() / 2;
}

}  // namespace

TEST_CASE(
    "every (token, slot) pair is added to its own expert's Hessian with its own routing weight") {
  for (const double power : {0.0, 1.0, 2.0}) {
    CAPTURE(power);
    WalkedLayer run;
    run.plan.settings.min_tokens = 0;
    for (const int32_t role : {AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_DOWN})
      run.plan_role(role, "rtn", power);
    const at::Tensor x = hidden_states(3, 40, 1), f = ffn_inputs(run, x);
    run.run(x.clone());

    const MemorySource source = run.fake.source();
    const Layer before(source, *run.model, 0, 40);
    const Routing routing = before.route(f);
    const at::Tensor shared = before.shared_weight(f);
    for (int32_t e = AQ_EXPERT_SHARED; e < 6; e = e == AQ_EXPERT_SHARED ? 0 : e + 1) {
      CAPTURE(e);
      at::Tensor gate_h = at::zeros({24, 24}, at::kDouble);
      at::Tensor down_h = at::zeros({e < 0 ? 12 : 20, e < 0 ? 12 : 20}, at::kDouble);
      int64_t tokens = 0;
      double weight = 0;
      const auto add = [&](int64_t token, double s) {
        const at::Tensor row = f.narrow(0, token, 1);
        const at::Tensor in = row.to(at::kDouble);
        const at::Tensor hidden = run.layer->ffn_hidden(e, row).to(at::kDouble);  // quantized
        gate_h += in.t().mm(in) * s;
        down_h += hidden.t().mm(hidden) * s;
        tokens++;
        weight += s;
      };
      for (int64_t t = 0; t < f.size(0); t++) {
        if (e < 0) add(t, std::pow(shared[t][0].item<double>(), power));
        for (int64_t slot = 0; slot < routing.ids.size(1); slot++)
          if (routing.ids[t][slot].item<int32_t>() == e)
            add(t, std::pow(routing.weights[t][slot].item<double>(), power));
      }
      for (const int32_t role : {AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_DOWN}) {
        const Solution& result = run.results.at({role, e});
        CHECK(result.tokens == tokens);
        CHECK(result.weight == doctest::Approx(weight).epsilon(1e-5));
        const at::Tensor& w = run.fake.tensor(role, e);
        const at::Tensor q = at::tensor(run.format->dequantize(result.matrix)).view(w.sizes());
        const at::Tensor& h = role == AQ_ROLE_FFN_GATE ? gate_h : down_h;
        CHECK(result.loss ==
              doctest::Approx(loss_of((w - q).to(at::kDouble), h, run.plan.settings.percdamp))
                  .epsilon(1e-4));
      }
    }
  }
}

TEST_CASE(
    "experts with no, one or few tokens are solved, finite, better than rounded, and reported") {
  WalkedLayer run(40);  // many experts, few tokens
  for (const int32_t role : {AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP, AQ_ROLE_FFN_DOWN})
    run.plan_role(role, "gptq", 1);
  run.run(hidden_states(1, 30, 2), hidden_states(1, 30, 2));
  std::map<int64_t, int> by_tokens;
  for (const ExpertCoverage& c : run.coverage) by_tokens[c.tokens]++;
  REQUIRE(by_tokens[0] > 0);
  REQUIRE(by_tokens[1] > 0);
  REQUIRE(by_tokens[2] > 0);
  for (const ExpertCoverage& c : run.coverage) {
    CAPTURE(c.expert);
    CAPTURE(c.tokens);
    for (const int32_t role : {AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_DOWN}) {
      const Solution& result = run.results.at({role, c.expert});
      CHECK(result.tokens == c.tokens);
      CHECK(result.starved == (c.tokens < (role == AQ_ROLE_FFN_GATE ? 12 : 10)));
      CHECK_FALSE(result.rtn);
      CHECK(result.loss <= result.rtn_loss);
      const at::Tensor values = at::tensor(run.format->dequantize(result.matrix));
      CHECK(at::isfinite(values).all().item<bool>());
      const at::Tensor w = run.fake.tensor(role, c.expert).flatten();
      CHECK(((values - w).norm() / w.norm()).item<double>() < 0.25);
    }
  }
  CHECK(at::isfinite(run.after).all().item<bool>());
}

TEST_CASE("the module whose Hessian is not finite is named") {
  for (const char* algorithm : {"gptq", "rtn"}) {
    CAPTURE(algorithm);
    WalkedLayer run;
    run.plan_role(AQ_ROLE_FFN_DOWN, algorithm, 1);
    run.fake.tensor(AQ_ROLE_FFN_UP, 3).mul_(1e25);  // the squares of what it gives overflow
    std::string name;
    for (const Module& module : run.model->modules())
      if (module.key.role == AQ_ROLE_FFN_DOWN && module.key.expert == 3) name = module.name;
    const std::string message = name + ": the Hessian of its inputs is not finite";
    CHECK_THROWS_WITH_AS(run.run(hidden_states(6, 40, 3)), doctest::Contains(message.c_str()),
                         Error);
  }
}

TEST_CASE("the original model's hidden states behind a layer are those of the original layer") {
  WalkedLayer run;
  for (const int32_t role : {AQ_ROLE_ATTN_Q, AQ_ROLE_ATTN_K, AQ_ROLE_ATTN_V, AQ_ROLE_ATTN_O,
                             AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP, AQ_ROLE_FFN_DOWN})
    run.plan_role(role, "gptq", 1);
  const at::Tensor x = hidden_states(6, 40, 3);
  const at::Tensor original = x.narrow(0, 0, 3) + hidden_states(3, 40, 4) * 0.05;
  run.run(x.clone(), original.clone());
  const MemorySource source = run.fake.source();
  const at::Tensor expected = Layer(source, *run.model, 0, 40).forward(original);
  CHECK(((run.original_after - expected).norm() / expected.norm()).item<double>() < 1e-5);
  const at::Tensor quantized = run.layer->forward(x);
  CHECK(((run.after - quantized).norm() / quantized.norm()).item<double>() < 1e-5);
}

TEST_CASE(
    "hidden states in the host's memory become those that they become on the layer's device") {
  for (const auto attention : {AttentionOf::kRope, AttentionOf::kWired, AttentionOf::kLatent})
    for (const bool sequential : {true, false})
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
        CAPTURE(sequential);
        CAPTURE(type);
        WalkedLayer there(6, attention), here(6, attention);
        const at::Tensor x = hidden_states(3, 40, 3), original = hidden_states(2, 40, 4);
        for (WalkedLayer* run : {&there, &here}) {
          run->options = at::TensorOptions(kOtherDevice).dtype(type);
          run->plan.settings.sequential = sequential;
        }
        there.run(x.to(kOtherDevice), original.to(kOtherDevice));
        here.run(x.clone(), original.clone());
        CHECK(here.after.is_cpu());
        CHECK_FALSE(at::equal(here.after, x));
        CHECK(at::equal(there.after.cpu(), here.after));
        CHECK(at::equal(there.original_after.cpu(), here.original_after));
      }
}

TEST_CASE("attention that the adapter computes is quantized like the host's own") {
  const at::Tensor x = hidden_states(6, 40, 7);
  const auto roles = {AQ_ROLE_ATTN_Q, AQ_ROLE_ATTN_K, AQ_ROLE_ATTN_V, AQ_ROLE_ATTN_O};
  WalkedLayer described(6, AttentionOf::kPlain), wired(6, AttentionOf::kWired);
  for (WalkedLayer* run : {&described, &wired}) {
    for (const int32_t role : roles) run->plan_role(role, "gptq", 1);
    run->run(x.clone());
  }
  for (const int32_t role : roles) {
    const auto key = std::pair(role, int32_t{AQ_EXPERT_NONE});
    const Solution &a = described.results.at(key), &b = wired.results.at(key);
    CHECK(b.tokens == 240);
    CHECK(b.loss < b.rtn_loss);
    CHECK(b.loss == doctest::Approx(a.loss).epsilon(1e-3));
  }
  CHECK(((wired.after - described.after).norm() / described.after.norm()).item<double>() < 1e-2);

  WalkedLayer with_original(6, AttentionOf::kWired);
  for (const int32_t role : roles) with_original.plan_role(role, "gptq", 1);
  with_original.run(x.clone(), x.clone());
  const MemorySource source = with_original.fake.source();
  const at::Tensor expected = Layer(source, *with_original.model, 0, 40).forward(x);
  CHECK(((with_original.original_after - expected).norm() / expected.norm()).item<double>() < 1e-5);
}

TEST_CASE("in attention that the adapter computes, a shared input scale is observed and used") {
  const at::Tensor x = hidden_states(6, 40, 7);
  const auto roles = {AQ_ROLE_ATTN_Q, AQ_ROLE_ATTN_K, AQ_ROLE_ATTN_V, AQ_ROLE_ATTN_O};
  WalkedLayer described(6, AttentionOf::kPlain), wired(6, AttentionOf::kWired);
  for (WalkedLayer* run : {&described, &wired}) {
    for (const int32_t role : roles) {
      run->plan_role(role, "gptq", 1);
      run->round_inputs(role);
    }
    run->run(x.clone());
  }
  for (const int32_t role : roles) {
    const auto key = std::pair(role, int32_t{AQ_EXPERT_NONE});
    const Solution &a = described.results.at(key), &b = wired.results.at(key);
    CHECK(b.input_global != 1);
    CHECK(b.input_global == doctest::Approx(a.input_global).epsilon(1e-2));
    CHECK(b.loss == doctest::Approx(a.loss).epsilon(2e-2));
  }
  CHECK(((wired.after - described.after).norm() / described.after.norm()).item<double>() < 2e-2);
}

TEST_CASE("the routed experts of a layer share one input scale, also while it is measured") {
  for (const int64_t chunk_bytes :
       {int64_t{1}, int64_t{1} << 30}) {  // one expert at a time, and all together
    WalkedLayer run;
    run.chunk_bytes = chunk_bytes;
    for (const int32_t role : {AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP, AQ_ROLE_FFN_DOWN}) {
      run.plan_role(role, "gptq", 1);
      run.round_inputs(role);
    }
    const at::Tensor x = hidden_states(3, 40, 1), f = ffn_inputs(run, x);
    run.run(x.clone());
    const Routing routing = run.layer->route(f);
    float largest = 0;
    for (int32_t e = 0; e < 6; e++) {
      const at::Tensor rows = routing.ids.eq(e).any(1).nonzero().squeeze(1);
      const at::Tensor hidden = run.layer->ffn_hidden(e, f.index_select(0, rows));
      largest = std::max(largest, hidden.abs().max().item<float>());
    }
    const float of_inputs = 2688 / f.abs().max().item<float>();
    const float of_hidden = 2688 / largest;
    for (const PlannedModule& m : run.plan.modules) {
      if (!m.format || m.module->key.layer != 0 || m.module->key.expert < 0) continue;
      const bool down = m.module->key.role == AQ_ROLE_FFN_DOWN;
      const float found = run.results.at({m.module->key.role, m.module->key.expert}).input_global;
      CHECK(found == doctest::Approx(down ? of_hidden : of_inputs).epsilon(1e-5));
      ActivationRounder stored(run.activations);
      stored.set_global(found);
      const at::Tensor in = down ? f.narrow(1, 0, 20) : f;
      CHECK(run.layer->rounded_input(*m.module, in).equal(stored(in)));
    }
    const float shared = run.results.at({AQ_ROLE_FFN_DOWN, AQ_EXPERT_SHARED}).input_global;
    CHECK(shared != doctest::Approx(of_hidden).epsilon(1e-5));
    CHECK(at::isfinite(run.after).all().item<bool>());
  }
}

TEST_CASE("error feedback makes up for the errors of earlier layers") {
  const at::Tensor original = hidden_states(8, 64, 5);
  const at::Tensor skew = at::eye(24) + hidden_states(1, 24, 6)[0] * 0.03;
  const at::Tensor x = original.matmul(skew);
  const auto error = [&](double feedback) {
    WalkedLayer run;
    run.plan.settings.error_feedback = feedback;
    for (const int32_t role : {AQ_ROLE_ATTN_Q, AQ_ROLE_ATTN_K, AQ_ROLE_ATTN_V, AQ_ROLE_ATTN_O,
                               AQ_ROLE_FFN_GATE, AQ_ROLE_FFN_UP, AQ_ROLE_FFN_DOWN})
      run.plan_role(role, "gptq", 1);
    run.run(x.clone(), original.clone());
    // only what the layer adds is compared, because it cannot correct its input
    return ((run.after - x) - (run.original_after - original)).norm().item<double>();
  };
  CHECK(error(0.75) < 0.9 * error(0));
}

}  // namespace aqhost
