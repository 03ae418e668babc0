#include <doctest/doctest.h>

#include <aq/sdk/hf_decoder.hpp>

#include "given.h"

namespace {

using Json = nlohmann::json;

/// A family as small as can be.
class Small {
 public:
  static constexpr aq::Descriptor kDescriptor{"small", "Small", "1.0.0", "tests", "a test"};
  static int probe(const Json&, std::string&) { return 0; }
  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint& checkpoint) {
    const aq::HfConfig config(checkpoint);
    aq::LayerDesc layer = aq::hf_attention(config);
    layer.ffn = aq::hf_dense(config, config.integer("intermediate_size"));
    config.ignore({"sliding_window"});
    const auto count = static_cast<std::size_t>(config.count("num_hidden_layers"));
    return aq::hf_decoder(
        checkpoint, config,
        {.layers = std::vector(count, layer),
         .names = aq::hf_names({{AQ_ROLE_FFN_GATE, AQ_EXPERT_NONE, "l.{L}.gate"},
                                {AQ_ROLE_FFN_UP, AQ_EXPERT_NONE, "l.{L}.up"},
                                {AQ_ROLE_FFN_DOWN, AQ_EXPERT_NONE, "l.{L}.down"}})});
  }
};

const Json kConfig{{"num_hidden_layers", 1},   {"hidden_size", 8},     {"vocab_size", 10},
                   {"num_attention_heads", 2}, {"rms_norm_eps", 1e-5}, {"intermediate_size", 8},
                   {"torch_dtype", "float32"}, {"use_cache", true},    {"sliding_window", 7},
                   {"never_set", nullptr}};

Json with(const Json& changes) {
  Json config = kConfig;
  config.update(changes);
  return config;
}

/// What making the adapter logs, or its error.
std::string made_of(const Json& config) {
  const Given given(config);
  aq_error error{};
  const aq_model_factory& factory = aq::detail::ModelFactory<Small>::kFactory;
  const aq_model* model = factory.create(&factory, 0, given.host(), given.checkpoint(), &error);
  if (model == nullptr) return error.message;
  model->destroy(model);
  return given.logged();
}

/// Of severity AQ_LOG_WARNING.
std::string warning(const std::string& keys) {
  return "2 config.json: model \"small\" does not know these keys and runs as if they were not "
         "set: " +
         keys + "\n";
}

}  // namespace

TEST_CASE("keys that are set and that no code reads are told in one warning") {
  CHECK(made_of(kConfig) == "");
  CHECK(made_of(with({{"embedding_multiplier", 12}, {"logits_scaling", 7}, {"a_switch", true}})) ==
        warning("a_switch, embedding_multiplier, logits_scaling"));
  CHECK(made_of(with({{"off", false}})) == warning("off"));
  CHECK(made_of(with({{"nested", {{"a", 1}}}})) == warning("nested"));
  CHECK(made_of(with({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}}}})) ==
        "");
  CHECK(made_of(with({{"rope_parameters",
                       {{"rope_type", "linear"}, {"factor", 2}, {"beta_fast", 3}, {"new", 1}}}})) ==
        warning("rope_parameters.new"));
}

TEST_CASE("keys that change nothing are harmless in text_config, too") {
  aq::ConfigKeys keys;
  keys.mark("text_config");
  keys.mark("text_config.");
  const Json inner{{"dtype", "bfloat16"}, {"use_cache", true}, {"model_type", "x"}, {"new", 1}};
  CHECK(keys.unread({{"text_config", inner}}) == std::vector<std::string>{"text_config.new"});
}

TEST_CASE("an adapter that reads config.json itself, or a host that logs nothing, is left alone") {
  const Given given(with({{"unknown", 1}}));
  const aq::Checkpoint checkpoint(given.checkpoint());
  CHECK(aq::HfConfig(checkpoint.config()).has("hidden_size"));
  aq::detail::warn_of_unread_keys(checkpoint, "x", given.host());
  CHECK(given.logged() == "");
  aq::detail::warn_of_unread_keys(checkpoint, "x", nullptr);
  CHECK(aq::HfConfig(checkpoint).has("hidden_size"));
  aq::detail::warn_of_unread_keys(checkpoint, "x", given.host());
  CHECK(given.logged().find("unknown") != std::string::npos);
}

TEST_CASE("numbers that do not fit are refused before they are cast") {
  for (const Json& factor : {Json(1e300), Json(-1e300), Json(1.0000001), Json(0), Json(-0.5)}) {
    const std::string text = made_of(
        with({{"rope_scaling", {{"partial_rotary_factor", factor}, {"rope_type", "default"}}}}));
    CHECK_MESSAGE(text.find("partial_rotary_factor is ") != std::string::npos, text);
  }
  for (const Json& layers : {Json(2000000000), Json(4097), Json(0), Json(-1), Json(1e300),
                             Json(1.0), Json(uint64_t{18446744073709551615u}), Json("1")}) {
    const std::string text = made_of(with({{"num_hidden_layers", layers}}));
    CHECK_MESSAGE(text.find("config.json: num_hidden_layers is " + layers.dump()) == 0, text);
  }
}

TEST_CASE("of a whole number the message has what came and both bounds") {
  const auto refused = [](const Json& size, int32_t least) {
    return error_of([&] {
      (void)aq::HfConfig(Json{{"hidden_size", size}}).integer("hidden_size", least);
    });
  };
  for (const Json& size : {Json(0), Json(-3), Json(2147483648), Json(UINT64_MAX), Json(1e20),
                           Json("64"), Json(64.5), Json(true)}) {
    CAPTURE(size.dump());
    CHECK(refused(size, 1) == "config.json: hidden_size is " + size.dump() +
                                  ", expected a whole number from 1 to 2147483647");
  }
  CHECK(refused(UINT64_MAX, -1) != "");  // which is no -1
  CHECK(refused(-1, -1) == "");
  CHECK(refused(INT32_MAX, 1) == "");
}

TEST_CASE("a number of experts has other names, which must agree") {
  const auto count = [](const Json& config) {
    return aq::hf_expert_count(aq::HfConfig(config), {"num_experts", "num_local_experts"});
  };
  CHECK(count({{"num_experts", 4}}) == 4);
  CHECK(count({{"num_local_experts", 5}}) == 5);
  CHECK(count({{"num_experts", nullptr}, {"num_local_experts", 5}}) == 5);
  CHECK(count({{"num_experts", 6}, {"num_local_experts", 6}}) == 6);
  CHECK(error_of([&] {
          count({{"num_experts", 6}, {"num_local_experts", 5}});
        }) == "config.json: num_local_experts is 5, expected 6, as num_experts says");
  CHECK(error_of([&] { count(Json::object()); }) == "config.json has no num_experts");
}

TEST_CASE("layer_types that say what a family does anyway are taken") {
  const auto refused = [](const Json& types) {
    return error_of([&] {
      aq::hf_full_attention(aq::HfConfig(Json{{"num_hidden_layers", 2}, {"layer_types", types}}));
    });
  };
  CHECK(refused(nullptr) == "");
  CHECK(refused({"full_attention", "full_attention"}) == "");
  for (const Json& types : {Json{"full_attention", "sliding_attention"}, Json("full_attention"),
                            Json{"full_attention"}, Json{1}, Json::object()})
    CHECK(refused(types).find("layer_types is " + types.dump()) != std::string::npos);
}

namespace {

struct Smaller {
  static constexpr aq::Descriptor kDescriptor{"smaller", "Smaller", "1.0.0", "tests", "a test"};
  static constexpr const char* kAliases = "tiny";
  static int probe(const Json& config, std::string& why) {
    return aq::probe_config(
        config, {.model_type = "smaller", .architecture = "SmallerForCausalLM", .has = {"tiny"}},
        why);
  }
  static std::unique_ptr<aq::ModelAdapter> create(const aq::Checkpoint&) {
    throw aq::Error("a smaller one");
  }
};

}  // namespace

TEST_CASE("a plugin of two families calls the functions of the one that is meant") {
  const aq_model_factory& factory = aq::detail::ModelFactory<Small, Smaller>::kFactory;
  CHECK(factory.count(&factory) == 2);
  CHECK(factory.descriptor(&factory, 0)->id == std::string("small"));
  CHECK(factory.descriptor(&factory, 1)->id == std::string("smaller"));
  CHECK(factory.aliases(&factory, 0) == nullptr);
  CHECK(factory.aliases(&factory, 1) == std::string("tiny"));
  const std::pair<const char*, int> scores[] = {
      {R"({"model_type": "smaller"})", 100},
      {R"({"architectures": ["SmallerForCausalLM"]})", 90},
      {R"({"tiny": 1})", 50},
      {R"({"tiny": 1, "model_type": "x"})", 0},
      {R"({"tiny": null})", 0}};
  for (const auto& [config, score] : scores) {
    char why[64] = "";
    CHECK(factory.probe(&factory, 0, config, why, sizeof why) == 0);
    CHECK(factory.probe(&factory, 1, config, why, sizeof why) == score);
  }
  const Given given(kConfig);
  aq_error error{};
  CHECK(factory.create(&factory, 1, given.host(), given.checkpoint(), &error) == nullptr);
  CHECK(error.message == std::string("a smaller one"));
}
