#include "export/autogptq.h"

#include <doctest/doctest.h>

#include <cstring>

#include "base/error.h"
#include "export/all_plugins.h"

namespace aqhost {
namespace {

std::shared_ptr<const Format> integers(int bits, int group_size, const Json& more = {}) {
  Json options{{"group_size", group_size}, {"scale_dtype", "float16"}};
  options.update(more.is_null() ? Json::object() : more);
  return all_plugins().create_format("int" + std::to_string(bits), options);
}

QuantizedMatrix some_matrix(const Format& format, int64_t rows, int64_t cols) {
  QuantizedMatrix m;
  m.rows = rows;
  m.cols = cols;
  const int count = 1 << format.desc().element_bits;
  for (int64_t i = 0; i < rows * cols; i++)
    m.codes.push_back(static_cast<std::byte>((i * 7 + i / cols) % count));
  for (int64_t i = 0; i < rows * format.desc().groups(cols); i++)
    m.group_params.push_back(static_cast<float>(i + 1) * 0x1p-8f);
  return m;
}

StoredModule module_of(std::shared_ptr<const Format> format, int64_t rows, int64_t cols) {
  return {"m", std::move(format), nullptr, rows, cols};
}

std::vector<PackedTensor> packed(const StoredModule& module) {
  return autogptq().pack(module, some_matrix(*module.format, module.rows, module.cols), 1);
}

std::vector<std::span<const std::byte>> spans_of(const std::vector<PackedTensor>& tensors) {
  std::vector<std::span<const std::byte>> spans;
  for (const PackedTensor& t : tensors) spans.emplace_back(t.bytes);
  return spans;
}

uint32_t word(const PackedTensor& tensor, std::size_t i) {
  uint32_t value = 0;
  std::memcpy(&value, tensor.bytes.data() + 4 * i, sizeof value);
  return value;
}

/// "+:", "-:" or "" of the pattern that decides, and the bits.
std::pair<std::string, int> told(const Json& config, const std::string& name) {
  const auto module = GptqConfig(config, "config.json").find(name);
  return {module ? "" : "-", module ? module->bits : 0};
}

}  // namespace

TEST_CASE("GPTQ's tensors: codes down the columns, zero points less 1, and back") {
  for (const int bits : {2, 3, 4, 8})
    for (const int size : {32, -1}) {
      const StoredModule module = module_of(integers(bits, size), 32, 96);
      const auto tensors = packed(module);
      const int64_t groups = size < 0 ? 1 : 3;
      CHECK(tensors[0].info.shape == std::vector<int64_t>{3 * bits, 32});
      CHECK(tensors[1].info.shape == std::vector<int64_t>{groups, bits});
      CHECK(tensors[2].info.shape == std::vector<int64_t>{groups, 32});
      CHECK(tensors[3].info.shape == std::vector<int64_t>{96});
      const QuantizedMatrix m = some_matrix(*module.format, 32, 96);
      const QuantizedMatrix back = autogptq().unpack(module, spans_of(tensors));
      CHECK(back.codes == m.codes);
      CHECK(back.group_params == m.group_params);
    }
  const auto tensors = packed(module_of(integers(4, 32), 32, 96));
  CHECK(word(tensors[0], 0) == 0x1a3c5e70u);  // of row 0: 0 7 14 5 12 3 10 1
  CHECK(word(tensors[1], 0) == 0x77777777u);
  CHECK(word(tensors[3], 95) == 2);
  CHECK(word(packed(module_of(integers(8, 32), 32, 96))[1], 0) == 0x7f7f7f7fu);
}

TEST_CASE("GPTQ's tensors: what has no place in them, and what a damaged file holds, is refused") {
  for (const StoredModule& module :
       {module_of(integers(5, 32), 32, 32),
        module_of(integers(4, 32, {{"symmetric", false}}), 32, 32),
        module_of(integers(4, 32, {{"scale_dtype", "bfloat16"}}), 32, 32),
        module_of(integers(4, 32), 48, 32), module_of(integers(4, 32), 32, 40),
        module_of(all_plugins().create_format("q3_k", Json::object()), 32, 256),
        module_of(all_plugins().create_format("q4_k", Json::object()), 32, 256)})
    CHECK_THROWS_AS(autogptq().tensors_of(module), Error);
  const StoredModule module = module_of(integers(4, 32), 32, 64);
  for (const std::size_t tensor : {1, 2, 3}) {
    auto tensors = packed(module);
    tensors[tensor].bytes[0] = tensors[tensor].bytes[1] = std::byte{0x7f};
    CHECK_THROWS_AS(autogptq().unpack(module, spans_of(tensors)), Error);
  }
}

TEST_CASE("GPTQ's config: most at the top, others by pattern, a layer's experts by one") {
  std::vector<GptqModule> modules;
  for (int l = 0; l < 3; l++) {
    const std::string layer = "model.layers." + std::to_string(l);
    modules.push_back({layer + ".self_attn.q_proj", l == 1 ? 8 : 4, 128});
    modules.push_back({layer + ".mlp.gate", 0, -1});
    for (int e = 0; e < 12; e++)
      for (const char* role : {".gate_proj", ".down_proj"})
        modules.push_back(
            {layer + ".mlp.experts." + std::to_string(e) + role, l == 2 && e == 5 ? 2 : 3, 64});
  }
  modules.push_back({"lm_head", 0, -1});
  const Json config = gptq_config(modules);
  CHECK(config["bits"] == 3);
  CHECK(config["group_size"] == 64);
  CHECK(config["quant_method"] == "gptq");
  CHECK(config["lm_head"] == false);
  for (const GptqModule& m : modules) {
    CAPTURE(m.name);
    CHECK(told(config, m.name) == std::pair<std::string, int>(m.bits == 0 ? "-" : "", m.bits));
  }
  for (GptqModule& m : modules)
    if (m.name.find("experts") != std::string::npos) m.bits = 8;
  modules[0].bits = 8;
  for (int i = 0; i < 200; i++)
    modules.push_back({"model.layers." + std::to_string(i + 3) + ".self_attn.q_proj", 4, 128});
  // vLLM asks for the experts of a layer as one
  CHECK(told(gptq_config(modules), "model.layers.1.mlp.experts") ==
        std::pair<std::string, int>("", 8));
}

TEST_CASE("GPTQ's config: a value that a field cannot have is named, with the field") {
  const auto said = [](const Json& change) {
    Json config{{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}};
    config.update(change);
    try {
      GptqConfig(config, "config.json").find("model.layers.0.q_proj");
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  const std::string at = "config.json: quantization_config.";
  CHECK(said(Json::object()) == "accepted");
  CHECK(said({{"dynamic", nullptr}}) == "accepted");
  CHECK(said({{"dynamic", {{"-:model", nullptr}}}}) == "accepted");
  CHECK(said({{"bits", nullptr}}) == at + "bits: expected an integer, found nothing");
  CHECK(said({{"bits", "4"}}) == at + "bits: expected an integer, found \"4\"");
  CHECK(said({{"bits", 4.5}}) == at + "bits: expected an integer, found 4.5");
  CHECK(said({{"bits", 0}}) == at + "bits: expected an integer from 1 to 32, found 0");
  CHECK(said({{"bits", (int64_t{1} << 32) + 4}}) ==  // 4 in its lower 32 bits
        at + "bits: expected an integer from 1 to 32, found 4294967300");
  CHECK(said({{"group_size", UINT64_MAX}}) ==  // -1 as a signed number
        at + "group_size: expected an integer from -1 to 1073741824, found 18446744073709551615");
  CHECK(said({{"dynamic", 3}}) == at + "dynamic: expected an object, found 3");
  CHECK(said({{"dynamic", {{"+:model", 3}}}}) ==
        at + "dynamic.+:model: expected an object, found 3");
  CHECK(said({{"dynamic", {{"+:model", {{"bits", -1}}}}}}) ==
        at + "dynamic.+:model.bits: expected an integer from 1 to 32, found -1");
  CHECK(said({{"dynamic", {{"+:(", {{"bits", 8}}}}}})
            .starts_with(at + "dynamic.+:(: \"(\" is no valid regular expression"));
  CHECK_THROWS_WITH_AS(GptqConfig(3, "config.json"),
                       "config.json: quantization_config: expected an object, found 3", Error);
}

TEST_CASE("GPTQ's config: what \"dynamic\" overrides is taken from it, the rest from the top") {
  const GptqConfig config(
      {{"bits", 4},
       {"group_size", 128},
       {"dynamic", {{"+:.*q_proj", {{"bits", 8}}}, {"-:.*gate$", Json::object()}}}},
      "config.json");
  CHECK(config.find("a.q_proj")->bits == 8);
  CHECK(config.find("a.q_proj")->group_size == 128);
  CHECK(config.find("a.k_proj")->bits == 4);
  CHECK(!config.find("mlp.gate"));
}

}  // namespace aqhost
