// DecoderModel, as an adapter describes it, and what fills the host's structs.
#include <doctest/doctest.h>

#include <aq/sdk/decoder.hpp>
#include <array>
#include <cstring>

#include "given.h"

namespace {

const std::vector<aq::NameRow> kNames{
    {AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, "embed"},
    {AQ_ROLE_FINAL_NORM, AQ_EXPERT_NONE, "norm"},
    {AQ_ROLE_LM_HEAD, AQ_EXPERT_NONE, "head"},
    {AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, "{L}.q"},
    {AQ_ROLE_ATTN_K, AQ_EXPERT_NONE, "{L}.k"},
    {AQ_ROLE_ATTN_V, AQ_EXPERT_NONE, "{L}.v"},
    {AQ_ROLE_ATTN_O, AQ_EXPERT_NONE, "{L}.o"},
    {AQ_ROLE_ROUTER, AQ_EXPERT_NONE, "{L}.mlp.gate"},
    {AQ_ROLE_FFN_GATE, aq::kEachExpert, "{L}.{E}.gate"},
    {AQ_ROLE_FFN_UP, aq::kEachExpert, "{L}.{E}.up"},
    {AQ_ROLE_FFN_DOWN, aq::kEachExpert, "{L}.{E}.down"},
    {AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "{L}.gate"},
    {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "{L}.up"},
    {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "{L}.down"},
};
constexpr const char* kBias = "0.mlp.gate.e_score_correction_bias";

/// Layer 0 has experts, layer 1 none.
std::unique_ptr<aq::DecoderModel> model_of(std::vector<aq::NameRow> names, std::size_t layers = 2) {
  aq_model_desc desc{};
  desc.n_layers = 2;
  desc.hidden_size = 8;
  desc.vocab_size = 10;
  aq::LayerDesc layer;
  layer.attention.kind = AQ_ATTN_STANDARD;
  layer.attention.n_heads = layer.attention.n_kv_heads = 2;
  layer.attention.head_dim = 4;
  layer.ffn.kind = AQ_FFN_DENSE;
  layer.ffn.inner_size = 6;
  std::vector<aq::LayerDesc> all(layers, layer);
  all.front().ffn.kind = AQ_FFN_MOE;
  all.front().ffn.router = AQ_ROUTER_SIGMOID_TOPK;
  all.front().ffn.n_experts = 4;
  all.front().ffn.top_k = 1;
  const Given given(nlohmann::json::object());
  return std::make_unique<aq::DecoderModel>(
      aq::DecoderSpec{.model = desc, .layers = std::move(all), .names = std::move(names)},
      aq::Checkpoint(given.checkpoint()));
}

}  // namespace

TEST_CASE("a row for the router's bias gives every router one, by its whole name") {
  std::vector<aq::NameRow> names = kNames;
  names.push_back({AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, "{L}.mlp.gate.e_score_correction_bias"});
  const auto model = model_of(names);
  aq_tensor_key key{};
  REQUIRE(model->find_key(kBias, key));
  CHECK(key.layer == 0);
  CHECK(key.role == AQ_ROLE_ROUTER_BIAS);
  CHECK(key.part == AQ_PART_WEIGHT);
  aq_tensor_ref ref{};
  REQUIRE(model->find_ref(key, ref));
  CHECK(std::string(ref.name) == kBias);
  CHECK(!model->find_key("1.mlp.gate.e_score_correction_bias", key));  // no router there
  CHECK(!model->find_ref({1, AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, ref));
  CHECK(!model->find_ref({0, AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, AQ_PART_BIAS}, ref));
  // it picks experts: without it the one of the largest logit
  std::array<float, 4> logits{0, 0, 0, 1}, bias{0, 5, 0, 0};
  std::array<int32_t, 1> ids{};
  std::array<float, 1> weights{};
  std::array<int64_t, 2> wide{1, 4}, narrow{1, 1};
  const auto tensor = [](void* data, DLDataType type, int64_t* shape, int32_t ndim) {
    return DLTensor{data, {kDLCPU, 0}, ndim, type, shape, nullptr, 0};
  };
  const DLDataType f32{kDLFloat, 32, 1}, i32{kDLInt, 32, 1};
  DLTensor in = tensor(logits.data(), f32, wide.data(), 2),
           add = tensor(bias.data(), f32, &wide[1], 1),
           chosen = tensor(ids.data(), i32, narrow.data(), 2),
           weighed = tensor(weights.data(), f32, narrow.data(), 2);
  model->route({sizeof(aq_route_args), 0, &in, &add, nullptr, &chosen, &weighed});
  CHECK(ids[0] == 1);
  model->route({sizeof(aq_route_args), 0, &in, nullptr, nullptr, &chosen, &weighed});
  CHECK(ids[0] == 3);
}

TEST_CASE("without such a row there is no bias") {
  const auto model = model_of(kNames);
  aq_tensor_key key{};
  aq_tensor_ref ref{};
  CHECK(!model->find_key(kBias, key));
  CHECK(!model->find_ref({0, AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, AQ_PART_WEIGHT}, ref));
}

TEST_CASE("an adapter that describes fewer or more layers than there are is refused") {
  for (const std::size_t layers : {1, 3})
    CHECK(error_of([&] { model_of(kNames, layers); }) ==
          "the adapter describes " + std::to_string(layers) + " layers, config.json has 2");
}

TEST_CASE("aq_copy_out writes as far as both structs reach, and never before or behind") {
  struct Grown {
    uint32_t struct_size;
    int32_t first;
    int64_t later;
  };
  for (uint32_t size = 0; size <= sizeof(Grown) + 8; size++)
    for (const int64_t later : {0, 5}) {
      CAPTURE(size);
      std::array<unsigned char, sizeof(Grown) + 8> bytes{};
      bytes.fill(0xa5);
      std::memcpy(bytes.data(), &size, sizeof size);
      const Grown value{sizeof value, 0x01020304, later};
      const aq_status status = aq_copy_out(bytes.data(), &value, sizeof value);
      const bool room = size >= 4 && (later == 0 || size > offsetof(Grown, later));
      if (size < 4) CHECK(status == AQ_INVALID_ARGUMENT);
      if (size >= 8) CHECK(status == (room ? AQ_OK : AQ_UNSUPPORTED));
      uint32_t kept = 0;
      std::memcpy(&kept, bytes.data(), sizeof kept);
      CHECK(kept == size);
      for (std::size_t i = std::max<std::size_t>(4, std::min<std::size_t>(size, sizeof value));
           i < bytes.size(); i++)
        CHECK(bytes[i] == 0xa5);
    }
}
