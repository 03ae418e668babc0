#include "run/quantize.h"

#include <cmath>

#include "base/error.h"
#include "base/file.h"
#include "calibrate/corpus.h"
#include "export/decoded_checkpoint.h"
#include "export/verify.h"
#include "measure/evaluate.h"
#include "run/exporter.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {
namespace fs = std::filesystem;

std::string bytes_of(const Source& source, const std::string& tensor) {
  const std::vector<std::byte> bytes = source.bytes(tensor);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Whether the packed codes of a module are equal in two exports.
bool same(const Source& a, const Source& b, const std::string& module) {
  const std::string tensor = module + ".weight_packed";
  return bytes_of(a, tensor) == bytes_of(b, tensor);
}

double perplexity_of(const fs::path& folder) {
  const auto source = open_source(folder, registry());
  const auto model = registry().create_model(*source, "auto");
  const at::Tensor windows = CorpusReader(folder, model->desc().vocab_size)
                                 .windows(fs::path(AQ_TESTS_DIR) / "data/kjv_eval.txt", 64);
  return perplexity(*source, *model, windows.narrow(0, 0, 4), {}).value;
}

TEST_CASE("the same seed gives the same bytes, and another seed other bytes") {
  const OpenModel open;
  const Plan plan = open.plan("{default: {group_size: 16}}");
  open.quantize(plan, "a", 7);
  open.quantize(plan, "b", 7);
  open.quantize(plan, "c", 8);
  const std::string shard = "model-00001-of-00003.safetensors";
  CHECK(read_file(open / "a" / shard) == read_file(open / "b" / shard));
  CHECK(read_file(open / "a" / shard) != read_file(open / "c" / shard));
}

TEST_CASE("sequential: false solves every stage with the inputs of the unquantized layer") {
  const OpenModel open;
  open.quantize(open.plan("{default: {group_size: 16}}"), "with");
  open.quantize(open.plan("{default: {group_size: 16}, sequential: false}"), "without");
  const Reader with(open / "with"), without(open / "without");
  // q, k and v of layer 0 come first; all later modules see other inputs
  for (const char* name : {"q_proj", "k_proj", "v_proj"})
    CHECK(same(with, without, std::string("model.layers.0.self_attn.") + name));
  CHECK(!same(with, without, "model.layers.0.self_attn.o_proj"));
  CHECK(!same(with, without, "model.layers.1.self_attn.q_proj"));
  CHECK(std::abs(std::log(perplexity_of(open / "without") / perplexity_of(open / "model"))) < 0.2);
}

TEST_CASE("calibrate_all_experts: every expert is solved with every token") {
  const OpenModel open;
  const Json report =
      open.quantize(open.plan("{default: {group_size: 16}, calibrate_all_experts: true}"), "out");
  CHECK(report["totals"]["starved_experts"] == 0);
  for (const auto& [name, module] : report["modules"].items()) {
    CAPTURE(name);
    CHECK(module["tokens"] == 8 * 64);
    CHECK(module["weight"] == 8 * 64);
    CHECK(module["algorithm"] == "gptq");
  }
  int64_t routed = 0;  // coverage still counts what the router chose
  for (const Json& e : report["experts"]) routed += e["tokens"].get<int64_t>();
  CHECK(routed == 2 * 2 * 8 * 64);
}

TEST_CASE("min_tokens decides which experts are starved") {
  const OpenModel open;
  const auto starved = [&](const std::string& minimum, const std::string& name) {
    const Json report =
        open.quantize(open.plan("{default: {group_size: 16}, min_tokens: " + minimum + "}"), name);
    return report["totals"]["starved_experts"].get<int64_t>();
  };
  CHECK(starved("0", "none") == 0);
  CHECK(starved("1000000", "all") == 2 * 4);
  CHECK(!same(Reader(open / "none"), Reader(open / "all"), "model.layers.0.mlp.experts.0.up_proj"));
}

TEST_CASE("with min_tokens 0, an expert without tokens is as good as one rounded to nearest") {
  const OpenModel open({.experts = 32, .top_k = 1});
  QuantizeOptions options;
  options.target = open / "rtn";
  quantize(open.reader(), open.model(), open.plan("{default: {group_size: 16}}", "rtn"), options);
  options.target = open / "gptq";
  options.calibration =
      CalibrationOptions{{{fs::path(AQ_TESTS_DIR) / "data/kjv_calib.txt"}}, 1, 16, 0};
  const Json report =
      to_json(quantize(open.reader(), open.model(),
                       open.plan("{default: {group_size: 16}, min_tokens: 0}"), options));
  const Reader rtn(open / "rtn"), gptq(open / "gptq");
  int unreached = 0, differ = 0;
  for (const Json& e : report["experts"]) {
    const std::string name = fmt::format("model.layers.{}.mlp.experts.{}.up_proj",
                                         e["layer"].get<int>(), e["expert"].get<int>());
    if (e["tokens"] != 0) {
      differ += same(rtn, gptq, name) ? 0 : 1;
      continue;
    }
    unreached++;
    CHECK(report["modules"][name]["tokens"] == 0);
    const Json& module = report["modules"][name];
    CHECK(module["loss"].get<double>() > 0);
    CHECK(module["loss"].get<double>() <= module["rtn_loss"].get<double>());
  }
  CHECK(unreached >= 2 * (32 - 16));
  CHECK(differ > 0);
}

TEST_CASE("the algorithm of an override applies to its own modules only") {
  const OpenModel open;
  const Json report = open.quantize(
      open.plan("{default: {group_size: 16}, overrides: [{pattern: '*.k_proj', algorithm: rtn}]}"),
      "out");
  for (const auto& [name, module] : report["modules"].items()) {
    CAPTURE(name);
    const bool rounded = name.ends_with("k_proj");
    CHECK(module["algorithm"] == (rounded ? "rtn" : "gptq"));
    if (rounded) CHECK(module["loss"] == module["rtn_loss"]);
    if (name.ends_with("v_proj")) CHECK(module["loss"] < module["rtn_loss"]);
  }
}

TEST_CASE(
    "lm_head is quantized if the recipe names it, with the last layer's output as its input") {
  const OpenModel open;
  const Json report = open.quantize(
      open.plan("{default: {group_size: 16}, overrides: [{pattern: lm_head, group_size: 32}]}"),
      "out");
  const Json& head = report["modules"]["lm_head"];
  CHECK(head["group_size"] == 32);
  CHECK(head["tokens"] == 8 * 64);
  CHECK(head["loss"] < head["rtn_loss"]);
  CHECK(Reader(open / "out").find("lm_head.weight_packed") != nullptr);
  CHECK(Reader(open / "out").find("lm_head.weight") == nullptr);
  CHECK(std::abs(std::log(perplexity_of(open / "out") / perplexity_of(open / "model"))) < 0.2);
}

TEST_CASE("if only lm_head is quantized, every layer is run and none is changed") {
  const OpenModel open;
  const Json report = open.quantize(
      open.plan("{default: {skip: true}, overrides: [{pattern: lm_head, skip: false, group_size: "
                "32}]}"),
      "out");
  CHECK(report["modules"].size() == 1);
  CHECK(report["modules"]["lm_head"]["loss"] > 0);
}

TEST_CASE("GPTQ without text, and windows longer than the model, are refused") {
  const OpenModel open;
  const Plan plan = open.plan("{default: {group_size: 16}}");
  QuantizeOptions options;
  options.target = open / "out";
  CHECK_THROWS_WITH_AS(quantize(open.reader(), open.model(), plan, options),
                       doctest::Contains("GPTQ needs calibration text"), Error);
  options.calibration =
      CalibrationOptions{{{fs::path(AQ_TESTS_DIR) / "data/kjv_calib.txt"}}, 1, 1025, 0};
  CHECK_THROWS_WITH_AS(quantize(open.reader(), open.model(), plan, options),
                       "--seqlen 1025 is longer than the 1024 positions the model was made for",
                       Error);
  CHECK(!fs::exists(open / "out"));
}

TEST_CASE("a checkpoint that another tool has quantized is decoded, and quantized anew") {
  const OpenModel open;
  open.quantize(open.plan("{default: {wq: int8, group_size: 16}}", "rtn"), "int8");
  fs::remove(open / "int8" / kReportFile);  // by which aqhost knows its exports
  const auto original = open_original(open / "int8", registry());
  const auto model = registry().create_model(*original, "auto");
  const Plan plan =
      make_plan(*model,
                Recipe::parse("{default: {group_size: 16}, overrides: [{pattern: '*.q_proj', skip: "
                              "true}]}",
                              "r.yaml"),
                registry(), "rtn", compressed_tensors());
  QuantizeOptions options;
  options.target = open / "int4";
  quantize(*original, *model, plan, options);
  CHECK(verify(open / "int4", registry()).formats == std::map<std::string, int64_t>{{"int4", 30}});
  const Reader written(open / "int4");
  CHECK(written.find("model.layers.1.self_attn.q_proj.weight_scale") == nullptr);
  CHECK(bytes_of(written, "model.norm.weight") == bytes_of(*original, "model.norm.weight"));
  const std::string left = "model.layers.1.self_attn.q_proj.weight";
  REQUIRE(written.find(left) != nullptr);
  CHECK(written.find(left)->dtype == DType::kBF16);
  std::vector<float> exact(64 * 64), rounded(64 * 64);
  original->read_f32(left, 0, exact);
  written.read_f32(left, 0, rounded);
  const auto tensor = [](std::vector<float>& v) { return at::from_blob(v.data(), {64 * 64}); };
  CHECK(at::equal(tensor(exact).to(at::kBFloat16).to(at::kFloat), tensor(rounded)));
}

TEST_CASE("an export is not quantized again") {
  const OpenModel open;
  open.quantize(open.plan("{default: {group_size: 16}}", "rtn"), "out");
  CHECK_THROWS_WITH_AS(open_original(open / "out", registry()),
                       doctest::Contains("is quantized already, by aqhost"), Error);
}

}  // namespace
}  // namespace aqhost
