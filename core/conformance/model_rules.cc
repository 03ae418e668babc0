#include <aq/ext/block_forward.h>

#include <aq/sdk/router.hpp>
#include <cmath>
#include <cstring>

#include "checkpoint/dequantized_source.h"
#include "conformance/subjects.h"
#include "plugin/dl_tensor.h"

namespace aqhost {
namespace {

constexpr int64_t kTokens = 64;

/// A checkpoint without tensors.
class Nothing : public Source {
 public:
  explicit Nothing(Json config) : config_(std::move(config)) {}
  const Json& config() const override { return config_; }
  const std::string& directory() const override { return directory_; }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* find(std::string_view) const override { return nullptr; }
  void read_f32(std::string_view name, int64_t, std::span<float>) const override {
    fail("there is no tensor {}", name);
  }

 private:
  Json config_;
  std::string directory_ = "(nothing)";
  std::vector<TensorInfo> infos_;
};

/// Logits [kTokens, experts] with few different values, so that there are many ties. Unless
/// `finite`, some of them are -inf or NaN.
std::vector<float> some_logits(int32_t experts, bool finite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> logits;
  for (int64_t i = 0; i < kTokens * experts; i++) {
    auto x = static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9u >> 40;
    const float plain = static_cast<float>(x % 7) * 0.5f - 2;
    const bool odd = !finite && x / 7 % 3 == 0;
    logits.push_back(!odd ? plain : x / 21 % 2 == 0 ? NAN : -kInfinity);
  }
  return logits;
}

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

class ModelRules {
 public:
  ModelRules(const Registry& registry, std::string id,
             const std::optional<std::filesystem::path>& checkpoint)
      : registry_(registry), id_(std::move(id)), rules_("model " + id_) {
    if (checkpoint) source_ = open_checkpoint(*checkpoint);
  }

  std::vector<Verdict> run() {
    rules_.rule("it does not claim a config.json of an unknown model", [&] { probes_nothing(); });
    rules_.rule("a config.json without sizes is refused with a message", [&] { refuses_empty(); });
    const std::string whole =
        "its description, modules and names hold for the checkpoint, each name the inverse of its "
        "key";
    if (!rules_.rule(whole, [&] { make(); })) return rules_.take();
    rules_.rule("it knows the checkpoint's config.json, and says why", [&] { probes_own(); });
    rules_.rule("its structs fit older and newer hosts", [&] { growth(); });
    rules_.rule("keys and names of tensors that do not exist are not found", [&] { not_found(); });
    rules_.rule("layers and modules that do not exist are errors", [&] { out_of_range(); });
    rules_.rule("route does what its description says, also with ties, NaN and -inf",
                [&] { routes(); });
    rules_.rule("route refuses tensors of wrong shapes and types", [&] { wrong_shapes(); });
    rules_.rule("calls from many threads at the same time give what a single call gives",
                [&] { threads(); });
    rules_.rule("it offers to run an attention that the host does not know",
                [&] { block_forward(); });
    rules_.rule("an extension that it does not know is NULL",
                [&] { expect_no_unknown_extension(make()->raw()); });
    return rules_.take();
  }

 private:
  std::unique_ptr<const Model> make() const {
    if (!source_) throw Skip("needs a checkpoint of this family: --model DIR");
    return registry_.create_model(*source_, id_);
  }

  int score_of(const Json& config, std::string* why = nullptr) const {
    for (const ModelMatch& match : registry_.probe(config))
      if (match.id == id_) {
        if (why != nullptr) *why = match.why;
        return match.score;
      }
    return 0;
  }

  void probes_nothing() const {
    for (const Json& config :
         {Json::object(), Json{{"model_type", "no_such_model_type"}}, Json{{"model_type", 7}},
          Json{{"architectures", Json::array()}}, Json{{"architectures", "x"}}, Json(nullptr)})
      expect(score_of(config) == 0, "of {} it says {}", config.dump(), score_of(config));
  }

  void probes_own() const {
    std::string why;
    const int score = score_of(source_->config(), &why);
    expect(score > 0, "it says 0");
    expect(!why.empty(), "it says {}, and not why", score);
  }

  void refuses_empty() const {
    try {
      registry_.create_model(Nothing(Json::object()), id_);
    } catch (const Error& e) {
      expect(std::strstr(e.what(), "without a message") == nullptr, "{}", e.what());
      return;
    }
    fail("it made a model of {{}}");
  }

  void growth() const {
    const auto model = make();
    const aq_model* raw = model->raw();
    aq_error error{};
    check_growth<aq_model_desc>(
        [&](aq_model_desc* out) { return raw->describe(raw, out, &error); });
    check_growth<aq_attention_desc>(
        [&](aq_attention_desc* out) { return raw->describe_attention(raw, 0, 16, out, &error); });
    check_growth<aq_ffn_desc>(
        [&](aq_ffn_desc* out) { return raw->describe_ffn(raw, 0, out, &error); });
    check_growth<aq_module>([&](aq_module* out) { return raw->get_module(raw, 0, out, &error); });
  }

  void not_found() const {
    const auto model = make();
    const int32_t layers = model->desc().n_layers;
    for (const aq_tensor_key& key :
         {aq_tensor_key{layers, AQ_ROLE_ATTN_NORM, AQ_EXPERT_NONE, 0},
          aq_tensor_key{-1, AQ_ROLE_ATTN_NORM, AQ_EXPERT_NONE, 0},
          aq_tensor_key{0, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, 0},
          aq_tensor_key{0, 4000, AQ_EXPERT_NONE, 0}, aq_tensor_key{0, AQ_ROLE_FFN_UP, 1 << 20, 0},
          aq_tensor_key{-1, AQ_ROLE_EMBEDDING, AQ_EXPERT_NONE, 7}}) {
      const auto ref = model->find_ref(key);
      expect(!ref, "layer {}, role {}, expert {}, part {} is {}", key.layer, key.role, key.expert,
             key.part, ref ? ref->name : "");
    }
    const std::string first = source_->tensors().front().name;
    for (const std::string& name : {std::string(), std::string("no.such.tensor"), first + ".more",
                                    "more." + first, std::string("model.layers.00.x")})
      expect(!model->find_key(name), "\"{}\" has a key", name);
  }

  void out_of_range() const {
    const auto model = make();
    const aq_model* raw = model->raw();
    for (const int32_t layer : {-1, model->desc().n_layers}) {
      expect_refused("describe_attention of a layer that is not there", [&](aq_error* error) {
        aq_attention_desc out{};
        out.struct_size = sizeof out;
        return raw->describe_attention(raw, layer, 16, &out, error);
      });
      expect_refused("describe_ffn of a layer that is not there", [&](aq_error* error) {
        aq_ffn_desc out{};
        out.struct_size = sizeof out;
        return raw->describe_ffn(raw, layer, &out, error);
      });
    }
    expect_refused("get_module behind the last", [&](aq_error* error) {
      aq_module out{};
      out.struct_size = sizeof out;
      return raw->get_module(raw, raw->module_count(raw), &out, error);
    });
  }

  /// The first layer that has a router.
  static int32_t moe_layer(const Model& model) {
    for (int32_t l = 0; l < model.desc().n_layers; l++)
      if (model.ffn(l).kind == AQ_FFN_MOE) return l;
    throw Skip("no layer has a router");
  }

  static Routed route(const Model& model, int32_t layer, const std::vector<float>& logits,
                      const std::vector<float>& bias) {
    const FfnDesc& ffn = model.ffn(layer);
    const auto slots = static_cast<std::size_t>(kTokens * ffn.top_k);
    Routed routed{std::vector<int32_t>(slots), std::vector<float>(slots)};
    const std::vector<float> hidden(
        ffn.route_hidden ? static_cast<std::size_t>(kTokens * model.desc().hidden_size) : 0, 0.25f);
    model.route({layer, kTokens, logits, bias, hidden, routed.ids, routed.weights});
    return routed;
  }

  static std::vector<float> bias_of(const Model& model, int32_t layer) {
    std::vector<float> bias;
    if (model.find_ref({layer, AQ_ROLE_ROUTER_BIAS, AQ_EXPERT_NONE, AQ_PART_WEIGHT}))
      for (int32_t e = 0; e < model.ffn(layer).n_experts; e++)
        bias.push_back(static_cast<float>(e % 3) * 0.1f);
    return bias;
  }

  void routes() const {
    const auto model = make();
    const int32_t layer = moe_layer(*model);
    const FfnDesc& ffn = model->ffn(layer);
    const std::vector<float> bias = bias_of(*model, layer);
    for (const bool finite : {true, false}) {
      const std::vector<float> logits = some_logits(ffn.n_experts, finite);
      const Routed got = route(*model, layer, logits, bias);  // checks ids and weights
      if (ffn.router == AQ_ROUTER_CUSTOM) continue;
      compare(*model, layer, logits, bias, got);
    }
  }

  static void compare(const Model& model, int32_t layer, const std::vector<float>& logits,
                      const std::vector<float>& bias, const Routed& got) {
    aq_ffn_desc desc{};
    desc.struct_size = sizeof desc;
    aq_error error{};
    model.raw()->describe_ffn(model.raw(), layer, &desc, &error);
    aq::Router router(desc);
    const auto k = static_cast<std::size_t>(desc.top_k);
    std::vector<int32_t> ids(k);
    std::vector<float> weights(k);
    for (std::size_t t = 0; t < static_cast<std::size_t>(kTokens); t++) {
      router.route(logits.data() + t * static_cast<std::size_t>(desc.n_experts),
                   bias.empty() ? nullptr : bias.data(), ids.data(), weights.data());
      for (std::size_t slot = 0; slot < k; slot++) {
        expect(got.ids[t * k + slot] == ids[slot],
               "token {}, slot {}: expert {}, the description makes it {}", t, slot,
               got.ids[t * k + slot], ids[slot]);
        expect(std::fabs(got.weights[t * k + slot] - weights[slot]) <= 1e-5f,
               "token {}, slot {}: weight {}, the description makes it {}", t, slot,
               got.weights[t * k + slot], weights[slot]);
      }
    }
  }

  void block_forward() const {
    const auto model = make();
    const aq_model* raw = model->raw();
    for (int32_t l = 0; l < model->desc().n_layers; l++) {
      if (model->attention(l, 1).kind != AQ_ATTN_CUSTOM) continue;
      const void* table =
          AQ_HAS(raw, get_extension) ? raw->get_extension(raw, AQ_EXT_BLOCK_FORWARD) : nullptr;
      expect(table != nullptr && AQ_HAS(static_cast<const aq_block_forward*>(table), attention),
             "layer {} has custom attention, and there is no {} with it", l, AQ_EXT_BLOCK_FORWARD);
    }
  }

  void wrong_shapes() const {
    const auto model = make();
    const int32_t layer = moe_layer(*model);
    const FfnDesc& ffn = model->ffn(layer);
    std::vector<float> logits = some_logits(ffn.n_experts, true);
    std::vector<float> weights(static_cast<std::size_t>(kTokens * ffn.top_k));
    std::vector<int32_t> ids(weights.size());
    DlTensor right(logits.data(), kDlF32, {kTokens, int64_t{ffn.n_experts}});
    DlTensor narrow(logits.data(), kDlF32, {kTokens, int64_t{ffn.n_experts} - 1});
    DlTensor doubles(logits.data(), {kDLFloat, 64, 1}, {kTokens / 2, int64_t{ffn.n_experts}});
    DlTensor ids_out(ids.data(), kDlI32, {kTokens, int64_t{ffn.top_k}});
    DlTensor fewer(weights.data(), kDlF32, {kTokens - 1, int64_t{ffn.top_k}});
    DlTensor weights_out(weights.data(), kDlF32, {kTokens, int64_t{ffn.top_k}});
    const auto with = [&](DlTensor& in, DlTensor& out) {
      return [&](aq_error* error) {
        const aq_route_args args{sizeof args, layer,         in.get(), nullptr,
                                 nullptr,     ids_out.get(), out.get()};
        return model->raw()->route(model->raw(), &args, error);
      };
    };
    expect_refused("logits of too few experts", with(narrow, weights_out));
    expect_refused("logits of doubles", with(doubles, weights_out));
    expect_refused("weights of too few tokens", with(right, fewer));
  }

  void threads() const {
    const auto model = make();
    expect_on_many_threads([&] {
      for (const Module& m : model->modules()) {
        const auto ref = model->find_ref(m.key);
        expect(ref && ref->name == m.weight.name, "{} has another name among others", m.name);
        const auto key = model->find_key(m.weight.name);
        expect(key && key->layer == m.key.layer && key->role > 0, "{} has another key among others",
               m.name);
      }
      for (int64_t n = 1; n < 200; n++) model->attention(0, n);
    });
  }

  const Registry& registry_;
  std::string id_;
  Rules rules_;
  std::unique_ptr<const Source> source_;
};

}  // namespace

void check_model(const Registry& registry, const std::string& id,
                 const std::optional<std::filesystem::path>& checkpoint,
                 std::vector<Verdict>& verdicts) {
  for (Verdict& verdict : ModelRules(registry, id, checkpoint).run())
    verdicts.push_back(std::move(verdict));
}

}  // namespace aqhost
