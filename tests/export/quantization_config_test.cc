#include "export/quantization_config.h"

#include <doctest/doctest.h>

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

TEST_CASE("what is not understood is named") {
  const auto parse = [](const char* text) {
    return parse_quantization_config(Json::parse(text), "config.json");
  };
  CHECK_THROWS_WITH_AS(parse(R"({"quant_method": "awq"})"),
                       "config.json: quantization_config.quant_method is \"awq\", expected "
                       "\"compressed-tensors\"",
                       Error);
  CHECK_THROWS_WITH_AS(parse(R"({"quant_method": "compressed-tensors", "format": "f"})"),
                       "config.json: quantization_config.config_groups is missing or no object",
                       Error);
  CHECK_THROWS_WITH_AS(
      parse(R"({"quant_method": "compressed-tensors", "format": "f", "config_groups": {"g": {}}})"),
      "config.json: quantization_config.config_groups.g has not the targets (array) and weights "
      "(object) that were expected",
      Error);
}

}  // namespace aqhost
