// Layers with latent attention, with the gated delta rule, and with the options that came with
// them, compared with reference.h in float64.

#include <ATen/core/grad_mode.h>

#include "forward/embedding_and_head.h"
#include "forward/layer_check.h"

namespace aqhost {
namespace {

/// Checks that a layer equals the reference, on any number of tokens up to kTokens.
void check_layer(FakeModel& fake) {
  const auto model = fake.open();
  const Layer layer(fake.source(), *model, 0, kTokens);
  const at::Tensor x = input(fake);
  for (const int64_t tokens : {int64_t{1}, int64_t{4}, kTokens}) {
    CAPTURE(tokens);
    const at::Tensor part = x.narrow(1, 0, tokens);
    CHECK(distance(layer.forward(part), reference_forward(fake, part)) < kTolerance);
  }
}

void latent(FakeModel& m) { m.use_latent_attention(16); }
void latent_without_rank(FakeModel& m) { m.use_latent_attention(0); }
void delta(FakeModel& m) { m.use_delta_rule(false); }
void fused_delta(FakeModel& m) { m.use_delta_rule(true); }

constexpr void (*kKinds[])(FakeModel&) = {latent, latent_without_rank, delta, fused_delta};

}  // namespace

TEST_CASE("latent attention and the gated delta rule, as written out token by token") {
  for (const auto kind : kKinds) {
    FakeModel fake;
    kind(fake);
    check_layer(fake);
  }
}

TEST_CASE("latent attention rotates its part in pairs of halves or neighbours, and scales") {
  for (const auto kind : {latent, latent_without_rank}) {
    check_option([](FakeModel& m) { m.attention.rope_interleaved = 1; }, kind);
    check_option([](FakeModel& m) { m.attention.rope_scale = 1.3f; }, kind);
    check_option([](FakeModel& m) { m.attention.rope_dim = 4; }, kind);
    check_option([](FakeModel& m) { m.attention.scale = 0.1f; }, kind);
  }
}

TEST_CASE("a head's value may be larger or smaller than its key") {
  for (const int32_t size : {3, 14, 20}) {
    FakeModel fake;
    latent(fake);
    fake.attention.value_dim = size;
    check_layer(fake);
  }
  for (const int32_t size : {5, 8, 20}) {
    FakeModel fake;
    delta(fake);
    fake.attention.value_dim = size;
    check_layer(fake);
  }
}

TEST_CASE("the norms inside latent attention have an eps of their own, or that of the model") {
  check_option([](FakeModel& m) { m.attention.latent_eps = 0.5f; }, latent);
  check_option([](FakeModel& m) { m.desc.norm_eps = 0.5f; }, latent);
}

TEST_CASE("the gated delta rule has as many key heads as value heads, or fewer") {
  for (const auto kind : {delta, fused_delta})
    for (const int32_t key_heads : {1, 2, 4}) {
      CAPTURE(key_heads);
      FakeModel fake;
      kind(fake);
      fake.attention.n_kv_heads = key_heads;
      check_layer(fake);
    }
}

TEST_CASE("the convolution before the gated delta rule may see one token, or more than there are") {
  for (const int32_t size : {1, 2, 30}) {
    CAPTURE(size);
    check_option([=](FakeModel& m) { m.attention.conv_size = size; }, delta);
  }
}

TEST_CASE("the linear maps of every kind of attention add their biases") {
  for (const auto kind : kKinds)
    check_option([](FakeModel& m) { m.attention_biases = true; }, kind);
}

TEST_CASE("norms that multiply by 1 + w, but for the one behind the gated delta rule") {
  const auto plus_one = [](FakeModel& m) { m.desc.norm_plus_one = 1; };
  check_option(plus_one);
  check_option(plus_one, [](FakeModel& m) { m.attention.qk_norm = AQ_QK_NORM_HEAD; });
  check_option(plus_one, latent);
  check_option(plus_one, delta);
}

TEST_CASE("sinks take a share of every query, with windows and shared keys") {
  check_option([](FakeModel& m) { m.attention.sinks = 1; });
  check_option([](FakeModel& m) { m.attention.sinks = 1; },
               [](FakeModel& m) { m.attention.n_kv_heads = 2, m.attention.sliding_window = 3; });
}

TEST_CASE("a gate, whose rows follow each head of the query, multiplies the output") {
  const auto gate = [](FakeModel& m) { m.attention.output_gate = 1; };
  check_option(gate);
  check_option(gate, [](FakeModel& m) {
    m.attention.n_kv_heads = 2;
    m.attention.qk_norm = AQ_QK_NORM_HEAD;  // of the query, not of the gate
    m.attention_biases = true;
  });
}

TEST_CASE("clamped SwiGLU clamps the gate above, and the other input on both sides") {
  const auto clamped = [](float limit) {
    return [=](FakeModel& m) {
      m.ffn.activation = AQ_ACT_CLAMPED_SWIGLU;
      m.ffn.act_alpha = 1.7f;
      m.ffn.act_limit = limit;
    };
  };
  check_option(clamped(0.4f));
  check_option(clamped(0.4f), clamped(100));  // the limit is what makes the difference
  check_option([](FakeModel& m) { m.ffn.act_alpha = 0.5f; }, clamped(0.4f));
}

TEST_CASE("residual_scale multiplies what attention, routed, shared and dense experts add") {
  const auto scale = [](FakeModel& m) { m.desc.residual_scale = 0.22f; };
  check_option(scale);
  check_option(scale, [](FakeModel& m) { m.ffn.shared_size = 16, m.ffn.shared_gated = 1; });
  check_option(scale, [](FakeModel& m) { m.ffn.kind = AQ_FFN_DENSE; });
  for (const auto kind : kKinds) check_option(scale, kind);
  FakeModel described, wired;
  for (FakeModel* m : {&described, &wired}) scale(*m), m->attention.rope_dim = 0;
  wired.wire_attention();
  const at::Tensor expected = run(described);
  CHECK(distance(run(wired), expected) < kTolerance);
}

TEST_CASE("the scales of embeddings and logits") {
  FakeModel plain, scaled;
  scaled.desc.embedding_scale = 12;
  scaled.desc.logit_scale = 0.125f;
  const auto model = plain.open(), scaled_model = scaled.open();
  const at::Tensor ids = at::tensor({0, 49, 7, 7}, at::kLong).view({2, 2});
  const at::Tensor embedded = embed_tokens(plain.source(), *model, ids);
  CHECK(at::equal(embed_tokens(scaled.source(), *scaled_model, ids), embedded * 12));
  const at::Tensor x = input(plain).flatten(0, 1);
  const at::Tensor logits = OutputHead(plain.source(), *model).logits(x);
  CHECK(at::equal(OutputHead(scaled.source(), *scaled_model).logits(x), logits * 0.125));
}

TEST_CASE("in bfloat16, every kind of attention agrees with float32 to 2 digits") {
  for (const auto kind : kKinds) {
    FakeModel fake;
    kind(fake);
    const auto model = fake.open();
    const at::Tensor x = input(fake);
    const auto attention = [&](at::ScalarType type) {
      const Layer layer(fake.source(), *model, 0, kTokens, type);
      return layer.attention(layer.attention_input(x));
    };
    const at::Tensor narrow = attention(at::kBFloat16);
    CHECK((narrow.scalar_type() == at::kBFloat16));
    CHECK(distance(narrow, attention(at::kFloat)) < 0.02);
  }
}

TEST_CASE("a layer's steps do not depend on how many windows are run together") {
  for (const auto kind : kKinds) {
    FakeModel fake;
    kind(fake);
    const auto model = fake.open();
    const Layer layer(fake.source(), *model, 0, kTokens);
    const at::NoGradGuard no_grad;
    at::manual_seed(4);
    const at::Tensor x = at::randn({9, kTokens, fake.desc.hidden_size});
    const at::Tensor all = layer.attention(layer.attention_input(x));  // one window per thread
    for (int64_t w = 0; w < x.size(0); w++) {
      const at::Tensor one = layer.attention(layer.attention_input(x.narrow(0, w, 1)));
      CHECK(distance(one[0], all[w]) < kTolerance);
    }
  }
}

TEST_CASE("gradients reach the weights of every kind of attention") {
  for (const auto kind : kKinds) {
    FakeModel fake;
    kind(fake);
    const auto model = fake.open();
    Layer layer(fake.source(), *model, 0, kTokens);
    const at::Tensor a = layer.attention_input(input(fake));
    const at::Tensor direction = at::randn_like(a);
    const auto value = [&] { return (layer.attention(a) * direction).sum().item<double>(); };
    for (const Module& module : model->modules()) {
      if (module.key.role > AQ_ROLE_ATTN_O && module.key.role < AQ_ROLE_ATTN_Q_A) continue;
      if (module.key.role >= AQ_ROLE_FFN_NORM && module.key.role < AQ_ROLE_DELTA_QKV) continue;
      if (module.key.layer < 0) continue;
      CAPTURE(module.key.role);
      const at::Tensor before = layer.weight(module).clone();
      at::Tensor weight = before.clone().requires_grad_();
      layer.use_weight(module, weight);
      (layer.attention(a) * direction).sum().backward();
      const at::Tensor step = at::randn_like(before) * 0.003;
      const double slope = (weight.grad() * step).sum().item<double>();
      layer.use_weight(module, before + step);
      const double above = value();
      layer.use_weight(module, before - step);
      CHECK((above - value()) / 2 == doctest::Approx(slope).epsilon(0.02));
      layer.use_weight(module, before);
    }
  }
}

}  // namespace aqhost
