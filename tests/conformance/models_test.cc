// What every model plugin promises (aq/model.h), checked on those that know one of the small models
// in tests/models. tests/interop/test_conformance.py checks the others.

#include <filesystem>
#include <functional>
#include <set>

#include "checkpoint/reader.h"
#include "conformance/random_logits.h"
#include "forward/router.h"
#include "plugin/registry.h"
#include "tensor/tensor.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

constexpr int64_t kTokens = 300;

/// Runs `check` on the small models, each of which is of another family.
void for_each_model(const std::function<void(const Reader&, const Model&)>& check) {
  const Registry registry({AQ_BUILD_DIR "/plugins"});
  std::set<std::string> checked;
  std::size_t models = 0;
  for (const auto& entry : std::filesystem::directory_iterator("models")) {
    if (!entry.is_directory()) continue;
    CAPTURE(entry.path().string());
    const Reader reader(entry.path());
    const auto model = registry.create_model(reader, "auto");
    check(reader, *model);
    checked.insert(model->id());
    models++;
  }
  CHECK(models >= 4);
  CHECK(checked.size() == models);
}

TEST_CASE("name to key to name is the identity over every tensor of every model") {
  for_each_model([](const Reader& reader, const Model& model) {
    CHECK(!reader.tensors().empty());
    std::set<std::array<int32_t, 4>> keys;
    for (const TensorInfo& info : reader.tensors()) {
      CAPTURE(info.name);
      const auto key = model.find_key(info.name);
      REQUIRE(key.has_value());
      CHECK(model.find_ref(*key)->name == info.name);
      CHECK(keys.insert({key->layer, key->role, key->expert, key->part}).second);
    }
  });
}

TEST_CASE("a tensor beyond the model has no key, and a key beyond it no tensor") {
  for_each_model([](const Reader& reader, const Model& model) {
    const int32_t layers = model.desc().n_layers;
    CHECK_FALSE(model.find_ref({layers, AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, AQ_PART_WEIGHT}));
    CHECK_FALSE(model.find_ref({-1, AQ_ROLE_ATTN_Q, AQ_EXPERT_NONE, AQ_PART_WEIGHT}));
    CHECK_FALSE(model.find_ref({0, 999, AQ_EXPERT_NONE, AQ_PART_WEIGHT}));
    for (const TensorInfo& info : reader.tensors()) {
      CHECK_FALSE(model.find_key(info.name + "x"));
      CHECK_FALSE(model.find_key("x" + info.name));
    }
    for (int32_t l = 0; l < layers; l++)
      if (model.ffn(l).kind == AQ_FFN_MOE)
        CHECK_FALSE(model.find_ref({l, AQ_ROLE_FFN_UP, model.ffn(l).n_experts, AQ_PART_WEIGHT}));
  });
}

Routing route(const Model& model, int32_t layer, const at::Tensor& logits) {
  const int64_t k = model.ffn(layer).top_k;
  Routing out{logits, at::empty({kTokens, k}, at::kInt), at::empty({kTokens, k})};
  RouteArgs args;
  args.layer = layer;
  args.tokens = kTokens;
  args.logits = span_of<float>(out.logits);
  args.ids = span_of<int32_t>(out.ids);
  args.weights = span_of<float>(out.weights);
  model.route(args);
  return out;
}

TEST_CASE("route() agrees with the host's router and with one written out") {
  for_each_model([](const Reader&, const Model& model) {
    for (int32_t l = 0; l < model.desc().n_layers; l++) {
      const FfnDesc& desc = model.ffn(l);
      if (desc.kind != AQ_FFN_MOE || desc.router == AQ_ROUTER_CUSTOM) continue;
      const at::Tensor logits = random_logits(kTokens, desc.n_experts);
      const Routing told = route(model, l, logits);
      check_same(told, plain_router(desc, logits, {}));
      check_same(told, route_batch(desc, logits, {}));
    }
  });
}

}  // namespace
}  // namespace aqhost
