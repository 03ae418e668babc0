// What the shipped models do not use, against the same spelled out in float64 (reference.h).

#include "forward/layer.h"

#include "base/error.h"
#include "forward/compute_type.h"
#include "forward/decoder.h"
#include "forward/distance.h"
#include "forward/fake_model.h"
#include "forward/reference.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

constexpr int64_t kTokens = 11;
constexpr double kTolerance = 2e-6;  // float32 against float64
constexpr double kVisible = 1e-3;    // what an option that is heeded changes at least

at::Tensor input(const FakeModel& model) {
  at::manual_seed(3);
  return at::randn({2, kTokens, model.desc.hidden_size});
}

at::Tensor run(FakeModel& fake) {
  const auto model = fake.open();
  return Layer(fake.source(), *model, 0, kTokens).forward(input(fake));
}

/// The layer after `set`: as the reference has it, and not as it is without.
template <typename Set>
void check_option(const Set& set) {
  FakeModel plain, changed;
  set(changed);
  const at::Tensor without = run(plain), with = run(changed);
  CHECK(distance(without, reference_forward(plain, input(plain))) < kTolerance);
  CHECK(distance(with, reference_forward(changed, input(changed))) < kTolerance);
  CHECK(distance(with, without) > kVisible);
}

TEST_CASE("a token sees itself and the sliding window - 1 tokens before it") {
  check_option([](FakeModel& m) { m.attention.sliding_window = 3; });
  check_option([](FakeModel& m) { m.attention.sliding_window = 1; });
}

TEST_CASE("a sliding window as long as the sequence changes nothing") {
  FakeModel plain, windowed;
  windowed.attention.sliding_window = kTokens;
  CHECK(distance(run(windowed), run(plain)) < kTolerance);
}

TEST_CASE("q, k and v are clipped, after the q/k norm") {
  check_option([](FakeModel& m) { m.attention.clip_qkv = 0.5f; });
  check_option([](FakeModel& m) {
    m.attention.clip_qkv = 0.5f;
    m.attention.qk_norm = AQ_QK_NORM_FULL;
  });
}

TEST_CASE("q and k are normed over a head or over all heads") {
  check_option([](FakeModel& m) { m.attention.qk_norm = AQ_QK_NORM_HEAD; });
  check_option([](FakeModel& m) {
    m.attention.qk_norm = AQ_QK_NORM_FULL;
    m.attention.n_kv_heads = 2;
  });
}

TEST_CASE("the rotary embedding turns a part of each head") {
  check_option([](FakeModel& m) { m.attention.rope_dim = 4; });
  check_option([](FakeModel& m) { m.attention.rope_dim = 0; });
}

TEST_CASE("the rotary embedding pairs halves or neighbours, and scales") {
  check_option([](FakeModel& m) { m.attention.rope_interleaved = 1; });
  check_option([](FakeModel& m) { m.attention.rope_scale = 1.3f; });
  check_option([](FakeModel& m) {
    m.attention.rope_interleaved = 1;
    m.attention.rope_dim = 6;
    m.attention.rope_scale = 0.7f;
  });
}

TEST_CASE("attention scores are scaled as described") {
  check_option([](FakeModel& m) { m.attention.scale = 0.1f; });
}

TEST_CASE("query heads share keys and values") {
  check_option([](FakeModel& m) { m.attention.n_kv_heads = 2; });
  check_option([](FakeModel& m) { m.attention.n_kv_heads = 1; });
  check_option([](FakeModel& m) {
    m.attention.n_kv_heads = 2;
    m.attention.sliding_window = 4;
  });
}

TEST_CASE("linear maps add their biases") {
  check_option([](FakeModel& m) { m.attention_biases = true; });
  check_option([](FakeModel& m) { m.expert_biases = true; });
}

TEST_CASE("gated FFNs use silu, gelu or its tanh form") {
  FakeModel gelu, tanh;
  gelu.ffn.activation = AQ_ACT_GELU_GLU;
  tanh.ffn.activation = AQ_ACT_GELU_TANH_GLU;
  const at::Tensor exact = run(gelu), approximate = run(tanh);
  CHECK(distance(exact, reference_forward(gelu, input(gelu))) < kTolerance);
  CHECK(distance(approximate, reference_forward(tanh, input(tanh))) < kTolerance);
  CHECK(distance(approximate, exact) > 10 * kTolerance);
  check_option([](FakeModel& m) { m.ffn.activation = AQ_ACT_GELU_GLU; });
}

TEST_CASE("layer norm centers and adds its bias") {
  check_option([](FakeModel& m) { m.desc.norm_kind = AQ_NORM_LAYER; });
}

TEST_CASE("a dense FFN has no router") {
  check_option([](FakeModel& m) {
    m.ffn.kind = AQ_FFN_DENSE;
    m.ffn.inner_size = 36;
  });
}

TEST_CASE("the shared expert is added, weighed by its gate where it has one") {
  check_option([](FakeModel& m) { m.ffn.shared_size = 16; });
  check_option([](FakeModel& m) {
    m.ffn.shared_size = 16;
    m.ffn.shared_gated = 1;
  });
}

TEST_CASE("the adapter's router gets the router's bias and, where it asks, the hidden states") {
  check_option([](FakeModel& m) { m.router_bias = true; });
  check_option([](FakeModel& m) { m.ffn.route_hidden = 1; });
}

TEST_CASE("a layer runs sequences shorter than it was made for, and refuses longer ones") {
  FakeModel fake;
  const auto model = fake.open();
  const Layer layer(fake.source(), *model, 0, kTokens);
  const at::Tensor x = input(fake);
  const at::Tensor whole = layer.forward(x);
  CHECK(distance(layer.forward(x.narrow(1, 0, 4)), whole.narrow(1, 0, 4)) < kTolerance);
  CHECK(distance(layer.forward(x.narrow(1, 0, 1)), whole.narrow(1, 0, 1)) < kTolerance);
  CHECK_THROWS_WITH_AS(layer.forward(at::zeros({1, kTokens + 1, fake.desc.hidden_size})),
                       "a sequence of 12 tokens, the layer was made for 11", Error);
}

TEST_CASE("running a layer leaves its input as it was and repeats to the bit") {
  FakeModel fake;
  const auto model = fake.open();
  const Layer layer(fake.source(), *model, 0, kTokens);
  const at::Tensor x = input(fake), before = x.clone();
  const at::Tensor once = layer.forward(x);
  CHECK(at::equal(x, before));
  CHECK(at::equal(layer.forward(x), once));
}

TEST_CASE("in bfloat16 a layer gives the stream's type, and what float32 gives to 2 digits") {
  FakeModel fake;
  const auto model = fake.open();
  const Layer wide(fake.source(), *model, 0, kTokens);
  const Layer narrow(fake.source(), *model, 0, kTokens, at::kBFloat16);
  const at::Tensor x = input(fake), expected = wide.forward(x);
  CHECK((narrow.forward(x).scalar_type() == at::kFloat));
  CHECK((narrow.forward(x.to(at::kBFloat16)).scalar_type() == at::kBFloat16));
  CHECK(distance(narrow.forward(x), expected) < 0.02);
  CHECK(distance(narrow.forward(x.to(at::kBFloat16)), expected) < 0.02);
  CHECK(distance(narrow.forward(x), expected) > 1e-4);  // it was used
}

TEST_CASE("auto computes in bfloat16 only what is stored in it") {
  FakeModel fake;
  const auto model = fake.open();
  const MemorySource source = fake.source();  // stored in float32
  CHECK((compute_type("auto", source) == at::kFloat));
  CHECK((compute_type("float32", source) == at::kFloat));
  CHECK((compute_type("bfloat16", source) == at::kBFloat16));
  CHECK_THROWS_WITH_AS(compute_type("half", source),
                       "--dtype \"half\": expected auto, float32 or bfloat16", Error);
}

TEST_CASE("a weight that was set is the one that is used") {
  for (const auto& [role, expert] :
       {std::pair<int32_t, int32_t>{AQ_ROLE_ATTN_V, AQ_EXPERT_NONE}, {AQ_ROLE_FFN_UP, 3}}) {
    FakeModel fake;
    const auto model = fake.open();
    Layer layer(fake.source(), *model, 0, kTokens);
    const at::Tensor before = layer.forward(input(fake));
    const Module& module = *model->find_module({0, role, expert, AQ_PART_WEIGHT});
    CHECK(at::equal(layer.weight(module), fake.tensor(role, expert)));
    layer.set_weight(module, fake.tensor(role, expert) * 2);
    CHECK(at::equal(layer.weight(module), fake.tensor(role, expert) * 2));
    fake.tensors.at(fmt::format("{}.{}.0", role, expert)).mul_(2);
    const at::Tensor after = layer.forward(input(fake));
    CHECK(distance(after, reference_forward(fake, input(fake))) < kTolerance);
    CHECK(distance(after, before) > kVisible);
  }
}

TEST_CASE("what only block-forward can run is refused by name") {
  FakeModel attention, ffn;
  attention.attention.kind = AQ_ATTN_CUSTOM;
  ffn.ffn.kind = AQ_FFN_CUSTOM;
  const auto attention_model = attention.open(), ffn_model = ffn.open();
  CHECK_THROWS_WITH_AS(Layer(attention.source(), *attention_model, 0, kTokens),
                       "model \"fake\", layer 0: attention that only the adapter knows "
                       "(block-forward) is not supported by this aqhost",
                       Error);
  CHECK_THROWS_WITH_AS(Layer(ffn.source(), *ffn_model, 0, kTokens),
                       "model \"fake\", layer 0: an FFN that only the adapter knows "
                       "(block-forward) is not supported by this aqhost",
                       Error);
}

/// Logits of random hidden states against the reference; `head` [vocab, hidden].
void check_ends(FakeModel& fake, const char* head_name) {
  const auto model = fake.open();
  const Ends ends(fake.source(), *model);
  const at::Tensor x = input(fake).flatten(0, 1);
  const at::Tensor normed = reference_norm(fake, AQ_ROLE_FINAL_NORM, x.to(at::kDouble), true);
  at::Tensor logits = normed.matmul(fake.tensors.at(head_name).to(at::kDouble).t());
  if (fake.head_bias)
    logits += fake.tensor(AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, AQ_PART_BIAS, true).to(at::kDouble);
  CHECK(distance(ends.final_norm(x), normed) < kTolerance);
  CHECK(distance(ends.logits(x), logits) < kTolerance);
}

TEST_CASE("logits come from lm_head with its bias, or from tied embeddings") {
  FakeModel plain, biased, tied, layer_norm;
  biased.head_bias = true;
  tied.desc.tied_embeddings = 1;
  layer_norm.desc.norm_kind = AQ_NORM_LAYER;
  check_ends(plain, "top.3.-1.0");
  check_ends(biased, "top.3.-1.0");
  check_ends(tied, "top.1.-1.0");
  check_ends(layer_norm, "top.3.-1.0");
}

TEST_CASE("embed looks ids up and refuses those outside the vocabulary") {
  FakeModel fake;
  const auto model = fake.open();
  const Ends ends(fake.source(), *model);
  const at::Tensor ids = at::tensor({0, 49, 7, 7}, at::kLong).view({2, 2});
  const at::Tensor table = fake.tensor(AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, AQ_PART_WEIGHT, true);
  CHECK(at::equal(ends.embed(ids), table.index({ids})));
  CHECK_THROWS_WITH_AS(ends.embed(at::tensor({3, 50}, at::kLong)),
                       "token ids from 3 to 50, the vocabulary has 50: does the tokenizer belong "
                       "to this model?",
                       Error);
  CHECK_THROWS_AS(ends.embed(at::tensor({-1, 3}, at::kLong)), Error);
}

}  // namespace
}  // namespace aqhost
