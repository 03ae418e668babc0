#include "export/verify.h"

#include <cstring>
#include <functional>

#include "base/error.h"
#include "changed_checkpoint.h"
#include "export/autogptq.h"
#include "export/decoded_checkpoint.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

const std::string kQ = "model.layers.0.self_attn.q_proj";

/// An export, rounded to int4 in groups of 16, that a test damages.
class Export {
 public:
  Export() { open_.quantize(open_.plan("{default: {group_size: 16, algorithm: rtn}}"), "out"); }

  void change_tensors(const std::function<void(Tensors&)>& change) const {
    aqhost::change_tensors(path(), change);
  }

  void change_config(const std::function<void(Json&)>& change) const {
    aqhost::change_config(path(), [&](Json& config) { change(config["quantization_config"]); });
  }

  fs::path path() const { return open_ / "out"; }
  const OpenModel& original() const { return open_; }

  doctest::String refused() const {
    try {
      verify(path(), registry());
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  }

 private:
  OpenModel open_;
};

using doctest::Contains;

TEST_CASE("a whole export is accepted and summed up") {
  const Export written;
  const VerifySummary summary = verify(written.path(), registry());
  CHECK(summary.model_type == "olmoe");
  CHECK(summary.modules == 2 * (4 + 4 * 3));
  CHECK(summary.weights == 2 * (4 * 64 * 64 + 4 * 3 * 48 * 64));
  CHECK(summary.bits_per_weight == 5.0);
  CHECK(summary.formats == std::map<std::string, int64_t>{{"int4", 32}});
}

TEST_CASE("an original is no export") {
  const OpenModel open;
  CHECK_THROWS_WITH_AS(verify(open / "model", registry()), Contains("is not quantized"), Error);
}

TEST_CASE("a packed tensor that is missing, of another type or shape is named") {
  const Export written;
  written.change_tensors([](Tensors& t) { t.erase(kQ + ".weight_scale"); });
  CHECK(written.refused() == Contains((kQ + ".weight_scale is missing").c_str()));

  const Export narrow;
  narrow.change_tensors([](Tensors& t) {
    auto& [info, bytes] = t[kQ + ".weight_packed"];
    info.shape[0]--;
    bytes.resize(bytes.size() - 4 * static_cast<std::size_t>(info.shape[1]));
  });
  CHECK(narrow.refused() == Contains((kQ + ".weight_packed is I32 [63, 8], format int4").c_str()));

  const Export typed;
  typed.change_tensors([](Tensors& t) { t[kQ + ".weight_scale"].first.dtype = DType::kI16; });
  CHECK(typed.refused() == Contains((kQ + ".weight_scale is I16 [64, 4], format int4").c_str()));
}

TEST_CASE("a weight_shape that lies is refused, however large") {
  for (const int64_t rows :
       {int64_t{63}, int64_t{0}, int64_t{-1}, int64_t{1} << 31, int64_t{1} << 62}) {
    CAPTURE(rows);
    const Export written;
    written.change_tensors([rows](Tensors& t) {
      std::memcpy(t[kQ + ".weight_shape"].second.data(), &rows, sizeof rows);
    });
    CHECK(written.refused() == Contains(kQ.c_str()));
  }
}

TEST_CASE("a weight_shape of 32 bits is read as one of 64") {
  const Export written;
  written.change_tensors([](Tensors& t) {
    for (auto& [name, tensor] : t)
      if (name.ends_with(".weight_shape")) {
        auto& [info, bytes] = tensor;
        info.dtype = DType::kI32;
        bytes = bytes.substr(0, 4) + bytes.substr(8, 4);
      }
  });
  CHECK(written.refused() == "accepted");
  written.change_tensors([](Tensors& t) { t[kQ + ".weight_shape"].second[0]--; });
  CHECK(written.refused() == Contains(kQ.c_str()));
}

TEST_CASE("a module that the model needs is not there") {
  const Export written;
  written.change_tensors([](Tensors& t) {
    for (const char* part : {".weight_packed", ".weight_scale", ".weight_shape"})
      t.erase(kQ + part);
  });
  CHECK(written.refused() == Contains((kQ + ".weight is missing").c_str()));
}

TEST_CASE("a scale or a dense value that is not finite is named") {
  const Export written;
  written.change_tensors([](Tensors& t) {
    t[kQ + ".weight_scale"].second[11] = '\x7f';  // bfloat16 with all exponent bits
    t[kQ + ".weight_scale"].second[10] = '\xc0';
  });
  CHECK(written.refused() == Contains(kQ.c_str()));

  const Export dense;
  dense.change_tensors([](Tensors& t) {
    t["model.norm.weight"].second[1] = '\x7f';
    t["model.norm.weight"].second[0] = '\x80';
  });
  CHECK(dense.refused() == Contains("tensor model.norm.weight: element 0 is inf"));
}

TEST_CASE("a quantization_config that does not say what is stored is refused") {
  const auto refused = [](const std::function<void(Json&)>& change) {
    const Export written;
    written.change_config(change);
    return written.refused();
  };
  CHECK(refused([](Json& c) { c["ignore"].push_back(kQ); }) ==
        Contains((kQ + " is stored quantized, but quantization_config.ignore lists it").c_str()));
  CHECK(refused([](Json& c) { c["config_groups"]["group_0"]["targets"] = {kQ}; }) ==
        Contains("no group of quantization_config covers model.layers."));
  CHECK(refused([](Json& c) { c["config_groups"]["group_0"]["weights"]["num_bits"] = 7; }) ==
        Contains("group_0: no format plugin reads format"));
  CHECK(refused([](Json& c) { c["config_groups"]["group_0"]["weights"]["group_size"] = 32; }) ==
        Contains("down_proj.weight_scale is BF16 [64, 3], format int4 of a 64 x 48 matrix expects "
                 "BF16 [64, 2]"));
  CHECK(refused([](Json& c) {
          c["quant_method"] = "awq";
          c.erase("config_groups");
        }) == Contains("quant_method is \"awq\", expected \"compressed-tensors\""));
  CHECK(refused([](Json& c) { c.erase("config_groups"); }) ==
        Contains("quantization_config.config_groups: expected an object, found nothing"));
  CHECK(refused([](Json& c) { c = 3; }) == Contains("quantization_config: expected an object"));
  CHECK(refused([](Json& c) { c["ignore"] = "lm_head"; }) ==
        Contains("quantization_config.ignore: expected an array"));
  for (const Json& none : {Json(), Json::object()})
    CHECK(refused([&none](Json& c) { c = none; }) == Contains("is not quantized"));
}

TEST_CASE("a dense module that ignore leaves out is named, lm_head of tied embeddings too") {
  const std::string gate = "model.layers.1.mlp.gate";
  const auto without = [](const std::string& name) {
    return [name](Json& c) {
      Json kept = Json::array();
      for (const Json& other : c["ignore"])
        if (other != name) kept.push_back(other);
      c["ignore"] = kept;
    };
  };
  for (const std::string& name : {gate, std::string("lm_head")}) {
    const Export written;
    written.change_config(without(name));
    CHECK(written.refused() == Contains((name + " is dense, but a group").c_str()));
    written.change_config([&name](Json& c) { c["ignore"].push_back("re:.*" + name + "$"); });
    CHECK(written.refused() == "accepted");
  }
  const Export tied;
  tied.change_tensors([](Tensors& t) { t.erase("lm_head.weight"); });
  change_config(tied.path(), [](Json& c) { c["tie_word_embeddings"] = true; });
  CHECK(tied.refused() == "accepted");
  tied.change_config([](Json& c) { c["ignore"] = Json::array(); });
  CHECK(tied.refused() == Contains("is dense, but a group"));
  tied.change_config([&](Json& c) {
    c["ignore"] = {"model.layers.0.mlp.gate", "model.layers.1.mlp.gate"};
  });
  CHECK(tied.refused() == Contains("lm_head is dense, but a group of quantization_config covers"));
}

TEST_CASE(
    "weights that decode to what is not finite are named with their file when they are read") {
  // a scale of the largest bfloat16 times a code beyond 1
  const Export large;
  large.change_tensors([](Tensors& t) {
    t[kQ + ".weight_scale"].second[1] = '\x7f';
    t[kQ + ".weight_scale"].second[0] = '\x7f';
  });
  const auto source = open_source(large.path(), registry());
  std::vector<float> values(64 * 64);
  CHECK_THROWS_WITH_AS(source->read_f32(kQ + ".weight", 0, values),
                       Contains(("out/model.safetensors: " + kQ + ": weight [0, ").c_str()), Error);
}

/// Every value within `json`, by its place.
void places_in(const Json& json, const Json::json_pointer& at,
               std::vector<Json::json_pointer>& all) {
  all.push_back(at);
  if (json.is_object())
    for (const auto& [key, value] : json.items()) places_in(value, at / key, all);
  if (json.is_array())
    for (std::size_t i = 0; i < json.size(); i++) places_in(json[i], at / i, all);
}

TEST_CASE("whatever stands in a field of quantization_config is read or refused by a sentence") {
  const std::vector<Json> values{Json(),
                                 true,
                                 -1,
                                 0,
                                 3,
                                 1e300,
                                 -0.5,
                                 INT64_MIN,
                                 UINT64_MAX,
                                 (int64_t{1} << 32) + 4,
                                 "",
                                 "x",
                                 "re:(",
                                 "re:.*",
                                 Json::array(),
                                 Json::object(),
                                 Json::array({nullptr}),
                                 Json{{"x", nullptr}}};
  OpenModel open;
  open.quantize(open.plan("{default: {wq: int8, aq: int8, group_size: -1, algorithm: rtn}}"), "ct");
  open.quantize(open.plan("{default: {group_size: 32, algorithm: rtn}, overrides: [{pattern: "
                          "'*experts*', skip: true}, {pattern: '*.1.*o_proj', wq: int8}]}",
                          "", autogptq()),
                "gptq");
  for (const char* folder : {"ct", "gptq"}) {
    const Json config = read_json(open / folder / "config.json");
    std::vector<Json::json_pointer> places;
    const Json::json_pointer top("/quantization_config");
    places_in(config.at(top), top, places);
    int refused = 0;
    for (const auto& place : places)
      for (const Json& value : values) {
        CAPTURE(place.to_string());
        CAPTURE(value.dump());
        Json changed = config;
        changed[place] = value;
        write_file(open / folder / "config.json", changed.dump());
        try {
          open_source(open / folder, registry());
        } catch (const Error& e) {  // anything else ends the test
          refused++;
          CHECK(std::string(e.what()).find("exception") == std::string::npos);
          CAPTURE(std::string(e.what()));
          CHECK(std::string(e.what()).find(folder) != std::string::npos);
        }
      }
    CHECK(refused > static_cast<int>(places.size()));
  }
}

TEST_CASE("activations that are not rounded as they come are refused for that reason") {
  OpenModel open;
  open.quantize(open.plan("{default: {wq: int8, aq: int8, group_size: -1, algorithm: rtn}}"),
                "out");
  const auto said = [&open](const char* key, const Json& value) -> doctest::String {
    change_config(open / "out", [&](Json& c) {
      c["quantization_config"]["config_groups"]["group_0"]["input_activations"][key] = value;
    });
    try {
      open_source(open / "out", registry());
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  CHECK(said("dynamic", true) == "accepted");
  CHECK(said("dynamic", false) ==
        Contains("input_activations.dynamic: expected true or \"local\""));
  CHECK(said("dynamic", true) == "accepted");
  CHECK(said("strategy", "tensor") == Contains("strategy \"tensor\" is not supported"));
}

TEST_CASE("settings that make other weights of what is stored are refused") {
  for (const auto& [key, value] :
       {std::pair<const char*, Json>{"sparsity_config", {{"format", "x"}}},
        {"transform_config", {{"a", 1}}}}) {
    CAPTURE(key);
    const Export written;
    written.change_config([&, &key = key, &value = value](Json& c) { c[key] = value; });
    CHECK(written.refused() == Contains((std::string(key) + " {").c_str()));
  }
  for (const auto& [key, value] : {std::pair<const char*, Json>{"checkpoint_format", "gptq_v2"},
                                   {"pack_dtype", "int8"},
                                   {"sym", false},
                                   {"desc_act", 3}}) {
    CAPTURE(key);
    Json config{{"bits", 4}, {"group_size", 128}};
    CHECK_NOTHROW(GptqConfig(config, "f"));
    config[key] = value;
    CHECK_THROWS_WITH_AS(GptqConfig(config, "f"), Contains(key), Error);
  }
}

TEST_CASE("a module that is stored both quantized and dense is refused") {
  const Export written;
  written.change_tensors([&written](Tensors& t) {
    const auto bytes = written.original().reader().bytes(kQ + ".weight");
    t[kQ + ".weight"] = {*written.original().reader().find(kQ + ".weight"),
                         {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
  });
  CHECK(written.refused() == Contains((kQ + " is stored twice").c_str()));
}

TEST_CASE("a module that a group covers but that is stored dense is refused") {
  const Export written;
  written.change_tensors([&written](Tensors& t) {
    for (const char* part : {".weight_packed", ".weight_scale", ".weight_shape"})
      t.erase(kQ + part);
    const auto bytes = written.original().reader().bytes(kQ + ".weight");
    t[kQ + ".weight"] = {*written.original().reader().find(kQ + ".weight"),
                         {reinterpret_cast<const char*>(bytes.data()), bytes.size()}};
  });
  CHECK(written.refused() ==
        Contains((kQ + " is dense, but a group of quantization_config covers it").c_str()));
}

}  // namespace
}  // namespace aqhost
