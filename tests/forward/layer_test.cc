// Options of layers that the shipped models do not use, compared with reference.h in float64.

#include "forward/layer.h"

#include "base/error.h"
#include "forward/compute_type.h"
#include "forward/distance.h"
#include "forward/embedding_and_head.h"
#include "forward/fake_model.h"
#include "forward/layer_check.h"
#include "forward/reference.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

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

TEST_CASE("the rotary embedding rotates a part of each head") {
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

TEST_CASE("layer norm subtracts the mean and adds its bias") {
  check_option([](FakeModel& m) { m.desc.norm_kind = AQ_NORM_LAYER; });
}

TEST_CASE("a dense FFN has no router") {
  check_option([](FakeModel& m) {
    m.ffn.kind = AQ_FFN_DENSE;
    m.ffn.inner_size = 36;
  });
}

TEST_CASE("the shared expert is added, times its gate if it has one") {
  check_option([](FakeModel& m) { m.ffn.shared_size = 16; });
  check_option([](FakeModel& m) {
    m.ffn.shared_size = 16;
    m.ffn.shared_gated = 1;
  });
}

TEST_CASE(
    "the adapter's router gets the router's bias and, if it asks for them, the hidden states") {
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

TEST_CASE("running a layer does not change its input and is repeatable to the bit") {
  FakeModel fake;
  const auto model = fake.open();
  const Layer layer(fake.source(), *model, 0, kTokens);
  const at::Tensor x = input(fake), before = x.clone();
  const at::Tensor once = layer.forward(x);
  CHECK(at::equal(x, before));
  CHECK(at::equal(layer.forward(x), once));
}

TEST_CASE("in bfloat16, a layer keeps the type of x and agrees with float32 to 2 digits") {
  FakeModel fake;
  const auto model = fake.open();
  const Layer wide(fake.source(), *model, 0, kTokens);
  const Layer narrow(fake.source(), *model, 0, kTokens, at::kBFloat16);
  Routing routing;
  const at::Tensor x = input(fake), expected = wide.forward(x, &routing);
  CHECK(distance(narrow.forward(x), expected) > 1e-4);  // it was used
  for (const at::ScalarType stream : {at::kFloat, at::kBFloat16}) {
    Routing chosen;
    const at::Tensor got = narrow.forward(x.to(stream), &chosen);
    CHECK((got.scalar_type() == stream));
    // a near tie may send a token to another expert
    const at::Tensor same = (chosen.ids == routing.ids).all(1);
    CHECK(same.sum().item<int64_t>() >= same.size(0) - 2);
    const auto rows = [&](const at::Tensor& t) { return t.flatten(0, 1).index({same}); };
    CHECK(distance(rows(got), rows(expected)) < 0.02);
  }
}

TEST_CASE("auto chooses bfloat16 only for checkpoints that are stored in it") {
  FakeModel fake;
  const auto model = fake.open();
  const MemorySource source = fake.source();  // stored in float32
  CHECK((compute_type("auto", source) == at::kFloat));
  CHECK((compute_type("float32", source) == at::kFloat));
  CHECK((compute_type("bfloat16", source) == at::kBFloat16));
  CHECK_THROWS_WITH_AS(compute_type("half", source),
                       "--dtype \"half\": expected auto, float32 or bfloat16", Error);
}

TEST_CASE("a weight that was set is used") {
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

TEST_CASE("a custom FFN, and custom attention without block-forward, are refused") {
  FakeModel attention, ffn;
  attention.attention.kind = AQ_ATTN_CUSTOM;
  ffn.ffn.kind = AQ_FFN_CUSTOM;
  const auto attention_model = attention.open(), ffn_model = ffn.open();
  CHECK_THROWS_WITH_AS(Layer(attention.source(), *attention_model, 0, kTokens),
                       "model \"fake\", layer 0: attention that only the adapter knows, but it has "
                       "no extension aq.model.block-forward/1 that runs it",
                       Error);
  CHECK_THROWS_WITH_AS(Layer(ffn.source(), *ffn_model, 0, kTokens),
                       "model \"fake\", layer 0: an FFN that only the adapter knows "
                       "(block-forward) is not supported by this aqhost",
                       Error);
}

TEST_CASE("attention that the adapter computes equals the host's own and shows its inputs") {
  FakeModel described, wired;
  for (FakeModel* m : {&described, &wired}) {
    m->attention.rope_dim = 0;
    m->attention.n_kv_heads = 2;
    m->attention_biases = true;
  }
  wired.wire_attention();
  const at::Tensor expected = run(described);
  const auto model = wired.open();
  const Layer layer(wired.source(), *model, 0, kTokens);
  CHECK(distance(layer.forward(input(wired)), expected) < kTolerance);

  const at::Tensor a = layer.attention_input(input(wired));
  std::vector<std::string> seen;
  layer.attention(a, [&](const Module& module, const at::Tensor& x) {
    seen.push_back(fmt::format("{} {}", module.key.role, x.size(0)));
    if (module.key.role != AQ_ROLE_ATTN_O) CHECK(at::equal(x, a.flatten(0, 1)));
  });
  CHECK(seen == std::vector<std::string>{"17 22", "18 22", "19 22", "20 22"});
}

TEST_CASE("faults of an adapter's attention are reported, and its output is checked") {
  const auto said = [](decltype(aq_block_forward::attention) attention) {
    FakeModel fake;
    fake.wire_attention();
    const aq_block_forward table{sizeof table, 0, attention, nullptr};
    fake.block_forward = &table;
    try {
      run(fake);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("nothing");
  };
  CHECK(said([](const aq_model*, const aq_forward_args*, aq_error*) { return aq_status{AQ_OK}; }) ==
        "model \"fake\", layer 0: attention left its output unfilled, or not finite");
  CHECK(said([](const aq_model*, const aq_forward_args* args, aq_error* err) {
          return args->ctx->linear(args->ctx, 99, args->x, args->y, err);
        }) == "model \"fake\", layer 0: attention: linear: module 99 is not one of layer 0");
  CHECK(said([](const aq_model*, const aq_forward_args* args, aq_error* err) {
          return args->ctx->linear(args->ctx, 0, args->x, args->y, err);
        }) == "model \"fake\", layer 0: attention: linear: y is [22, 24], expected [22, 32]");
  CHECK(
      said([](const aq_model*, const aq_forward_args* args, aq_error* err) {
        const aq_tensor_key key{0, AQ_ROLE_CUSTOM, AQ_EXPERT_NONE, AQ_PART_WEIGHT};
        DLTensor out;
        return args->ctx->tensor(args->ctx, &key, &out, err);
      }) ==
      "model \"fake\", layer 0: attention: tensor: layer 0 has none of role 4096, expert -1, part "
      "0");
  CHECK(said([](const aq_model*, const aq_forward_args* args, aq_error* err) {
          return args->ctx->attend(args->ctx, args->x, args->x, args->x, 1, args->y, err);
        }) ==
        "model \"fake\", layer 0: attention: attend: q is no float32 tensor of 3 dimensions on the "
        "CPU");
}

TEST_CASE("a failure of the host is reported to the adapter as such, not as a wrong argument") {
  static aq_status status;
  FakeModel fake;
  fake.wire_attention();
  const aq_block_forward table{sizeof table, 0,
                               [](const aq_model*, const aq_forward_args* args, aq_error* err) {
                                 return status =
                                            args->ctx->linear(args->ctx, 0, args->x, args->y, err);
                               },
                               nullptr};
  fake.block_forward = &table;
  fake.attention.n_heads = fake.attention.n_kv_heads = 1;  // as many inputs as outputs
  fake.attention.head_dim = static_cast<int32_t>(fake.desc.hidden_size);
  const auto model = fake.open();
  const Layer layer(fake.source(), *model, 0, kTokens);
  const at::Tensor a = layer.attention_input(input(fake));
  const auto fails_by = [&](const LinearTap& tap) {
    status = AQ_OK;
    try {
      layer.attention(a, tap);
    } catch (const Error&) {  // only the status matters
    }
    return status;
  };
  CHECK(fails_by(nullptr) == AQ_OK);
  CHECK(fails_by([](const Module&, const at::Tensor&) { fail("wrong"); }) == AQ_INVALID_ARGUMENT);
  CHECK(fails_by([](const Module&, const at::Tensor&) { throw std::bad_alloc(); }) ==
        AQ_OUT_OF_MEMORY);
  CHECK(fails_by([](const Module&, const at::Tensor&) { throw std::logic_error("a bug"); }) ==
        AQ_INTERNAL);
}

/// Compares the logits of random hidden states with the reference, for `head` [vocab, hidden].
void check_ends(FakeModel& fake, const char* head_name) {
  const auto model = fake.open();
  const OutputHead head(fake.source(), *model);
  const at::Tensor x = input(fake).flatten(0, 1);
  const at::Tensor normed = reference_norm(fake, AQ_ROLE_FINAL_NORM, x.to(at::kDouble), true);
  at::Tensor logits = normed.matmul(fake.tensors.at(head_name).to(at::kDouble).t());
  if (fake.head_bias)
    logits += fake.tensor(AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, AQ_PART_BIAS, true).to(at::kDouble);
  CHECK(distance(head.final_norm(x), normed) < kTolerance);
  CHECK(distance(head.logits(x), logits) < kTolerance);
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

TEST_CASE("embed_tokens looks ids up and refuses those outside the vocabulary") {
  FakeModel fake;
  const auto model = fake.open();
  const OutputHead head(fake.source(), *model);
  const at::Tensor ids = at::tensor({0, 49, 7, 7}, at::kLong).view({2, 2});
  const at::Tensor table = fake.tensor(AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, AQ_PART_WEIGHT, true);
  CHECK(at::equal(embed_tokens(fake.source(), *model, ids), table.index({ids})));
  CHECK_THROWS_WITH_AS(
      embed_tokens(fake.source(), *model, at::tensor({3, 50}, at::kLong).view({1, 2})),
      "token ids from 3 to 50, the vocabulary has 50: does the tokenizer belong "
      "to this model?",
      Error);
  CHECK_THROWS_AS(embed_tokens(fake.source(), *model, at::tensor({-1, 3}, at::kLong).view({1, 2})),
                  Error);
}

}  // namespace
}  // namespace aqhost
