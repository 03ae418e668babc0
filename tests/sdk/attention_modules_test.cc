// What DecoderModel lists for each kind of attention: modules, their stages and inputs, and the
// tensors beside them.
#include <doctest/doctest.h>

#include <aq/sdk/decoder.hpp>
#include <memory>
#include <string>
#include <vector>

#include "given.h"

namespace {

using Lines = std::vector<std::string>;

const std::vector<aq::NameRow> kRows{
    {AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, "embed"},
    {AQ_ROLE_FINAL_NORM, AQ_EXPERT_NONE, "norm"},
    {AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, "head"},
    {AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, "{L}.q"},
    {AQ_ROLE_ATTN_K, AQ_EXPERT_NONE, "{L}.k"},
    {AQ_ROLE_ATTN_V, AQ_EXPERT_NONE, "{L}.v"},
    {AQ_ROLE_ATTN_O, AQ_EXPERT_NONE, "{L}.o"},
    {AQ_ROLE_ATTN_Q_A, AQ_EXPERT_NONE, "{L}.q_a"},
    {AQ_ROLE_ATTN_Q_A_NORM, AQ_EXPERT_NONE, "{L}.q_a_norm"},
    {AQ_ROLE_ATTN_Q_B, AQ_EXPERT_NONE, "{L}.q_b"},
    {AQ_ROLE_ATTN_KV_A, AQ_EXPERT_NONE, "{L}.kv_a"},
    {AQ_ROLE_ATTN_KV_A_NORM, AQ_EXPERT_NONE, "{L}.kv_a_norm"},
    {AQ_ROLE_ATTN_KV_B, AQ_EXPERT_NONE, "{L}.kv_b"},
    {AQ_ROLE_ATTN_SINKS, AQ_EXPERT_NONE, "{L}.sinks"},
    {AQ_ROLE_DELTA_QKV, AQ_EXPERT_NONE, "{L}.qkv"},
    {AQ_ROLE_DELTA_Z, AQ_EXPERT_NONE, "{L}.z"},
    {AQ_ROLE_DELTA_B, AQ_EXPERT_NONE, "{L}.b"},
    {AQ_ROLE_DELTA_A, AQ_EXPERT_NONE, "{L}.a"},
    {AQ_ROLE_DELTA_QKVZ, AQ_EXPERT_NONE, "{L}.qkvz"},
    {AQ_ROLE_DELTA_BA, AQ_EXPERT_NONE, "{L}.ba"},
    {AQ_ROLE_DELTA_OUT, AQ_EXPERT_NONE, "{L}.out"},
    {AQ_ROLE_DELTA_CONV, AQ_EXPERT_NONE, "{L}.conv"},
    {AQ_ROLE_DELTA_A_LOG, AQ_EXPERT_NONE, "{L}.A_log"},
    {AQ_ROLE_DELTA_DT_BIAS, AQ_EXPERT_NONE, "{L}.dt_bias"},
    {AQ_ROLE_DELTA_NORM, AQ_EXPERT_NONE, "{L}.delta_norm"},
    {AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "{L}.gate"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "{L}.up"},
    {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "{L}.down"},
};

/// Two heads of 4 for softmax attention.
aq::LayerDesc softmax_layer() {
  aq::LayerDesc layer;
  layer.attention.kind = AQ_ATTN_STANDARD;
  layer.attention.n_heads = layer.attention.n_kv_heads = 2;
  layer.attention.head_dim = 4;
  return layer;
}

aq::LayerDesc latent_layer(int32_t q_rank) {
  aq::LayerDesc layer = softmax_layer();
  layer.attention.kind = AQ_ATTN_LATENT;
  layer.attention.rope_dim = 2;
  layer.attention.q_rank = q_rank;
  layer.attention.kv_rank = 6;
  layer.attention.value_dim = 3;
  return layer;
}

/// Four value heads of 3, two key heads of 4.
aq::LayerDesc delta_layer(bool fused) {
  aq::LayerDesc layer = softmax_layer();
  layer.attention.kind = AQ_ATTN_DELTA;
  layer.attention.n_heads = 4;
  layer.attention.value_dim = 3;
  layer.attention.conv_size = 4;
  layer.attention.delta_fused = fused;
  return layer;
}

std::unique_ptr<aq::DecoderModel> decoder_of(std::vector<aq::LayerDesc> layers,
                                             std::vector<aq::Copied> copied = {},
                                             bool head_bias = false) {
  aq::DecoderSpec spec;
  spec.model.n_layers = static_cast<int32_t>(layers.size());
  spec.model.hidden_size = 8;
  spec.model.vocab_size = 10;
  for (aq::LayerDesc& layer : layers) {
    layer.ffn.kind = AQ_FFN_DENSE;
    layer.ffn.inner_size = 5;
  }
  spec.layers = std::move(layers);
  spec.names = kRows;
  spec.copied = std::move(copied);
  spec.head_bias = head_bias;
  const Given given(nlohmann::json::object());
  return std::make_unique<aq::DecoderModel>(std::move(spec), aq::Checkpoint(given.checkpoint()));
}

/// "NAME OUT x IN, stage S, input I" of each module, with "kept" behind it if it is not quantized
/// unless a recipe says so.
Lines listed(const aq::DecoderModel& model) {
  Lines lines;
  for (uint32_t i = 0; i < model.module_count(); i++) {
    const aq_module m = model.module(i);
    const bool kept = (m.flags & AQ_MODULE_QUANTIZE) == 0;
    lines.push_back(std::string(m.name) + " " + std::to_string(m.out_features) + " x " +
                    std::to_string(m.in_features) + ", stage " + std::to_string(m.stage) +
                    ", input " + std::to_string(m.input_group) + (kept ? ", kept" : ""));
  }
  return lines;
}

/// Those of `names` that the model knows; each is the inverse of its key.
Lines known(const aq::DecoderModel& model, const Lines& names) {
  Lines found;
  for (const std::string& name : names) {
    aq_tensor_key key{};
    if (!model.find_key(name, key)) continue;
    aq_tensor_ref ref{};
    REQUIRE(model.find_ref(key, ref));
    CHECK(ref.name == name);
    found.push_back(name);
  }
  return found;
}

}  // namespace

TEST_CASE("latent attention has three stages, the second with two inputs") {
  CHECK(listed(*decoder_of({latent_layer(7)})) ==
        Lines{"0.q_a 7 x 8, stage 0, input 0", "0.kv_a 8 x 8, stage 0, input 0",
              "0.q_b 8 x 7, stage 1, input 1", "0.kv_b 10 x 6, stage 1, input 2",
              "0.o 8 x 6, stage 2, input 3", "0.gate 5 x 8, stage 3, input 4",
              "0.up 5 x 8, stage 3, input 4", "0.down 8 x 5, stage 4, input 5",
              "head 10 x 8, stage 0, input 0, kept"});
  CHECK(listed(*decoder_of({latent_layer(0)})) ==
        Lines{"0.q 8 x 8, stage 0, input 0", "0.kv_a 8 x 8, stage 0, input 0",
              "0.kv_b 10 x 6, stage 1, input 2", "0.o 8 x 6, stage 2, input 3",
              "0.gate 5 x 8, stage 3, input 4", "0.up 5 x 8, stage 3, input 4",
              "0.down 8 x 5, stage 4, input 5", "head 10 x 8, stage 0, input 0, kept"});
}

TEST_CASE("the gated delta rule has one input, and its small modules are not quantized") {
  CHECK(listed(*decoder_of({delta_layer(false)})) ==
        Lines{"0.qkv 28 x 8, stage 0, input 0", "0.z 12 x 8, stage 0, input 0",
              "0.b 4 x 8, stage 0, input 0, kept", "0.a 4 x 8, stage 0, input 0, kept",
              "0.out 8 x 12, stage 1, input 1", "0.gate 5 x 8, stage 2, input 2",
              "0.up 5 x 8, stage 2, input 2", "0.down 8 x 5, stage 3, input 3",
              "head 10 x 8, stage 0, input 0, kept"});
  const Lines fused = listed(*decoder_of({delta_layer(true)}));
  CHECK(fused[0] == "0.qkvz 40 x 8, stage 0, input 0");
  CHECK(fused[1] == "0.ba 8 x 8, stage 0, input 0, kept");
  CHECK(fused[2] == "0.out 8 x 12, stage 1, input 1");
}

TEST_CASE("with an output gate the query has twice as many rows") {
  aq::LayerDesc gated = softmax_layer();
  gated.attention.output_gate = 1;
  CHECK(listed(*decoder_of({softmax_layer()}))[0] == "0.q 8 x 8, stage 0, input 0");
  const Lines lines = listed(*decoder_of({gated}));
  CHECK(lines[0] == "0.q 16 x 8, stage 0, input 0");
  CHECK(lines[3] == "0.o 8 x 8, stage 1, input 1");
}

TEST_CASE("each layer knows the tensors of its own kind of attention, and no others") {
  aq::LayerDesc with_sinks = softmax_layer();
  with_sinks.attention.sinks = 1;
  const auto model = decoder_of({softmax_layer(), with_sinks, latent_layer(7), latent_layer(0),
                                 delta_layer(false), delta_layer(true)});
  const auto of_layer = [&](int layer) {
    Lines names;
    for (const char* name : {"q.weight", "q_a_norm.weight", "q_b.weight", "kv_a_norm.weight",
                             "kv_b.weight", "sinks", "o.weight", "qkv.weight", "ba.weight",
                             "conv.weight", "A_log", "dt_bias", "delta_norm.weight", "out.weight"})
      names.push_back(std::to_string(layer) + "." + name);
    return known(*model, names);
  };
  CHECK(of_layer(0) == Lines{"0.q.weight", "0.o.weight"});
  CHECK(of_layer(1) == Lines{"1.q.weight", "1.sinks", "1.o.weight"});
  CHECK(of_layer(2) == Lines{"2.q_a_norm.weight", "2.q_b.weight", "2.kv_a_norm.weight",
                             "2.kv_b.weight", "2.o.weight"});
  CHECK(of_layer(3) == Lines{"3.q.weight", "3.kv_a_norm.weight", "3.kv_b.weight", "3.o.weight"});
  CHECK(of_layer(4) == Lines{"4.qkv.weight", "4.conv.weight", "4.A_log", "4.dt_bias",
                             "4.delta_norm.weight", "4.out.weight"});
  CHECK(of_layer(5) == Lines{"5.ba.weight", "5.conv.weight", "5.A_log", "5.dt_bias",
                             "5.delta_norm.weight", "5.out.weight"});
  CHECK(known(*model, {"1.sinks.weight", "4.A_log.weight", "4.dt_bias.bias"}) == Lines{});
}

TEST_CASE("biases belong to the modules that the description names") {
  const Lines names{"0.q.bias",  "0.q_a.bias", "0.q_b.bias",  "0.kv_a.bias", "0.kv_b.bias",
                    "0.o.bias",  "0.qkv.bias", "0.out.bias",  "0.gate.bias", "0.down.bias",
                    "head.bias", "0.z.bias",   "0.conv.bias", "0.a.bias"};
  aq::LayerDesc low = latent_layer(7), plain = latent_layer(0), rule = delta_layer(false);
  for (aq::LayerDesc* layer : {&low, &plain, &rule}) layer->qkv_bias = layer->out_bias = true;
  CHECK(known(*decoder_of({low}), names) == Lines{"0.q_a.bias", "0.kv_a.bias", "0.o.bias"});
  CHECK(known(*decoder_of({plain}), names) == Lines{"0.kv_a.bias", "0.o.bias"});
  CHECK(known(*decoder_of({rule}), names) == Lines{});
  low.qkv_bias = low.out_bias = false;
  low.ffn_bias = true;
  const auto model = decoder_of({low}, {}, /*head_bias=*/true);
  CHECK(known(*model, names) == Lines{"0.gate.bias", "0.down.bias", "head.bias"});
  CHECK(std::string(model->module(model->module_count() - 1).bias.name) == "head.bias");
  CHECK(model->module(0).bias.name == nullptr);
}

TEST_CASE("copied() lists what is given, and ends") {
  const auto model = decoder_of(
      {softmax_layer()}, {{"mtp.", "multi-token prediction"}, {"visual.", "a vision tower"}});
  REQUIRE(model->copied(1) != nullptr);
  CHECK(std::string(model->copied(0)->prefix) == "mtp.");
  CHECK(std::string(model->copied(0)->what) == "multi-token prediction");
  CHECK(std::string(model->copied(1)->prefix) == "visual.");
  CHECK(model->copied(2) == nullptr);
  CHECK(model->copied(UINT32_MAX) == nullptr);
  CHECK(decoder_of({softmax_layer()})->copied(0) == nullptr);
  CHECK(known(*model, {"mtp.0.q.weight", "visual.q.weight"}) == Lines{});
}
