#include "export/quantization_config.h"

#include <doctest/doctest.h>

#include <chrono>

#include "base/error.h"

namespace aqhost {
namespace {

const Json kInt4{{"format", "pack-quantized"}, {"weights", {{"num_bits", 4}, {"type", "int"}}}};
const Json kInt8{{"format", "pack-quantized"}, {"weights", {{"num_bits", 8}, {"type", "int"}}}};
const Json kMx{{"format", "mxfp4-pack-quantized"},
               {"weights", {{"num_bits", 4}, {"type", "float"}}}};

/// The weights object that a reader finds for `module`.
Json weights_of(const Json& config, const std::string& module) {
  const auto groups = parse_quantization_config(config, "config.json");
  const ConfigGroup* group = find_group(groups, module);
  return group == nullptr ? Json() : group->format["weights"];
}

}  // namespace

TEST_CASE("one format: all Linear modules, the dense ones ignored by name") {
  const Json config = quantization_config(
      {{"layers.0.q", &kInt4}, {"layers.0.gate", nullptr}, {"layers.1.q", &kInt4}});
  CHECK(config["quant_method"] == "compressed-tensors");
  CHECK(config["format"] == "pack-quantized");
  CHECK(config["config_groups"].size() == 1);
  CHECK(config["config_groups"]["group_0"]["targets"] == Json{"Linear"});
  CHECK(config["ignore"] == Json{"layers.0.gate"});
}

TEST_CASE("several formats: every module is found in its own group, by few patterns") {
  std::vector<ExportedModule> modules;
  for (int l = 0; l < 12; l++) {
    const std::string layer = "model.layers." + std::to_string(l);
    modules.push_back({layer + ".self_attn.q_proj", l == 3 ? &kInt8 : &kInt4});
    modules.push_back({layer + ".mlp.gate", nullptr});
    for (int e = 0; e < 11; e++) {
      const std::string expert = layer + ".mlp.experts." + std::to_string(e);
      modules.push_back({expert + ".gate_proj", &kMx});
      modules.push_back({expert + ".down_proj", l == 1 ? &kInt8 : e == 2 ? &kInt4 : &kMx});
    }
  }
  const Json config = quantization_config(modules);
  CHECK(config["format"] == "mixed-precision");
  std::size_t targets = 0;
  for (const auto& [name, group] : config["config_groups"].items())
    targets += group["targets"].size();
  for (const ExportedModule& m : modules)
    if (m.format != nullptr) CHECK(weights_of(config, m.name) == (*m.format)["weights"]);
  CHECK(targets < 200);  // of 276 modules; names only where layers and experts are mixed
}

TEST_CASE("an exact name comes before a pattern, and a pattern before Linear") {
  const Json config = Json::parse(R"({"quant_method": "compressed-tensors", "format": "f",
    "config_groups": {
      "a": {"targets": ["Linear"], "weights": {"num_bits": 2}},
      "b": {"targets": ["re:.*q_proj$"], "weights": {"num_bits": 3}},
      "c": {"targets": ["layers.1.q_proj"], "weights": {"num_bits": 4}}}})");
  CHECK(weights_of(config, "layers.0.o_proj")["num_bits"] == 2);
  CHECK(weights_of(config, "layers.0.q_proj")["num_bits"] == 3);
  CHECK(weights_of(config, "layers.1.q_proj")["num_bits"] == 4);
}

TEST_CASE("what is not understood is named, with the field") {
  const auto said = [](const std::string& more) {
    const Json config =
        Json::parse(R"({"quant_method": "compressed-tensors", "format": "f")" + more);
    try {
      parse_quantization_config(config, "config.json");
      Ignored(config, "config.json");
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const std::string at = "config.json: quantization_config.";
  CHECK(said("}") == at + "config_groups: expected an object, found nothing");
  CHECK(said(R"(, "config_groups": {"g": {}}})") ==
        at + "config_groups.g.targets: expected an array, found nothing");
  CHECK(said(R"(, "config_groups": {"g": 3}})") ==
        at + "config_groups.g: expected an object, found 3");
  CHECK(said(R"(, "config_groups": {"g": {"targets": ["Linear"], "weights": 3}}})") ==
        at + "config_groups.g.weights: expected an object, found 3");
  CHECK(said(R"(, "config_groups": {"g": {"targets": ["a", 3], "weights": {}}}})") ==
        at + "config_groups.g.targets[1]: expected a string, found 3");
  CHECK(said(R"(, "config_groups": {"g": {"targets": ["re:("], "weights": {}}}})")
            .starts_with(at + "config_groups.g.targets[0]: \"(\" is no valid regular expression"));
  CHECK(said(R"(, "config_groups": {"g": {"targets": [], "weights": {}, "format": 3}}})") ==
        at + "config_groups.g.format: expected a string, found 3");
  CHECK(said(R"(, "config_groups": {}, "ignore": "lm_head"})") ==
        at + "ignore: expected an array, found \"lm_head\"");
  CHECK(said(R"(, "config_groups": {}, "ignore": [null]})") ==
        at + "ignore[0]: expected a string, found nothing");
}

TEST_CASE("ignore holds names, patterns from the start on, and classes") {
  const Ignored ignored({{"ignore", {"lm_head", "re:.*gate$"}}}, "config.json");
  CHECK(ignored.contains("lm_head"));
  CHECK(ignored.contains("model.layers.3.mlp.gate"));
  CHECK(!ignored.contains("model.layers.3.mlp.gate_proj"));
  CHECK(!ignored.contains("lm_head.x"));
  CHECK(Ignored({{"ignore", {"Linear"}}}, "config.json").contains("anything"));
  CHECK(!Ignored({{"ignore", nullptr}}, "config.json").contains("lm_head"));
  CHECK(!Ignored(Json::object(), "config.json").contains("lm_head"));
}

TEST_CASE("fifty thousand modules are found among dozens of patterns and as many names at once") {
  Json groups = Json::object();
  for (int l = 0; l < 40; l++)
    groups["p" + std::to_string(l)] = {
        {"targets", {"re:model\\.layers\\." + std::to_string(l) + "\\.mlp\\.experts\\.\\d+\\.w1$"}},
        {"weights", {{"num_bits", l}}}};
  std::vector<std::string> names;
  for (int l = 0; l < 40; l++)
    for (int e = 0; e < 1200; e++)
      names.push_back("model.layers." + std::to_string(l) + ".mlp.experts." + std::to_string(e) +
                      (e % 2 == 0 ? ".w1" : ".w2"));
  for (const std::string& name : names)
    if (name.ends_with("w2")) groups["exact"]["targets"].push_back(name);
  groups["exact"]["weights"] = {{"num_bits", 99}};
  const Json config{
      {"quant_method", "compressed-tensors"}, {"format", "f"}, {"config_groups", groups}};
  const auto start = std::chrono::steady_clock::now();
  const auto parsed = parse_quantization_config(config, "config.json");
  std::size_t wrong = 0;
  for (const std::string& name : names) {
    const ConfigGroup* group = find_group(parsed, name);
    const int layer = std::stoi(name.substr(std::string("model.layers.").size()));
    const Json& bits = group->format["weights"]["num_bits"];
    wrong += bits == (name.ends_with("w1") ? layer : 99) ? 0 : 1;
  }
  CHECK(wrong == 0);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  MESSAGE("48,000 modules, 40 patterns, 24,000 names: " << took.count() << " s");
#ifndef __SANITIZE_ADDRESS__  // which makes it several times slower
  CHECK(took.count() < 20);   // a minute and more if each match compiles its pattern
#endif
}

}  // namespace aqhost
