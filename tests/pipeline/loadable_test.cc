#include "pipeline/loadable.h"

#include "base/error.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

constexpr SmallModel kServable{.hidden = 128, .inner = 64};

/// Problems of vLLM (those of SGLang are the same), then of transformers.
std::pair<std::vector<std::string>, std::vector<std::string>> problems(
    const std::string& recipe, SmallModel sizes = kServable,
    Layout layout = Layout::kCompressedTensors) {
  const OpenModel open(sizes);
  const auto loads = loadable(open.plan(recipe, "", layout));
  REQUIRE(loads.size() == 3);
  CHECK(loads[0].id == "vllm");
  CHECK(loads[1].id == "sglang");
  CHECK(loads[2].id == "transformers");
  CHECK(loads[0].problems == loads[1].problems);
  return {loads[0].problems, loads[2].problems};
}

using Found = std::vector<std::string>;

TEST_CASE("one format for all loads everywhere") {
  const auto [vllm, transformers] = problems("{default: {group_size: 64}}");
  CHECK(vllm.empty());
  CHECK(transformers.empty());
}

TEST_CASE("layers may differ in vLLM, not in transformers") {
  const auto [vllm, transformers] = problems(
      "{default: {group_size: 64}, overrides: [{pattern: 'model.layers.1.*', group_size: 32}]}");
  CHECK(vllm.empty());
  CHECK(transformers ==
        Found{"model.layers.1.mlp.experts.0.gate_proj: all experts of a model must be of one "
              "format, and are int4 g64 and int4 g32"});
}

TEST_CASE("experts of a layer that differ load nowhere, and the first that does is named") {
  const auto [vllm, transformers] = problems(
      "{default: {group_size: 64}, overrides: [{pattern: '*.experts.*.down_proj', group_size: "
      "32}]}");
  CHECK(vllm ==
        Found{"model.layers.0.mlp.experts.0.down_proj (and 1 more): the experts of a layer must be "
              "of one format, and are int4 g64 and int4 g32"});
  CHECK(transformers.size() == 1);
}

TEST_CASE("an expert left dense among quantized ones counts as another format") {
  const auto [vllm, transformers] = problems(
      "{default: {group_size: 64}, overrides: [{pattern: '*.0.mlp.experts.2.*', skip: true}]}");
  REQUIRE(vllm.size() == 1);
  CHECK(vllm[0].find("and are int4 g64 and dense") != std::string::npos);
  CHECK(transformers.size() == 1);
}

TEST_CASE("q, k and v are fused by vLLM and SGLang, and kept apart by transformers") {
  const auto [vllm, transformers] =
      problems("{default: {group_size: 64}, overrides: [{pattern: '*.k_proj', symmetric: false}]}");
  CHECK(vllm == Found{"model.layers.0.self_attn.k_proj (and 1 more): q, k and v must be of one "
                      "format, and are int4 g64 and int4 g64 symmetric=false"});
  CHECK(transformers.empty());
}

TEST_CASE("experts that no kernel is for") {
  CHECK(problems("{default: {group_size: 16}}").first ==
        Found{"model.layers.0.mlp.experts.0.gate_proj (and 23 more): experts in groups of 16 have "
              "no kernel, 32, 64, 128 and -1 have"});
  CHECK(problems("{default: {group_size: 64, symmetric: false}}").first ==
        Found{"model.layers.0.mlp.experts.0.gate_proj (and 23 more): experts with zero points have "
              "no kernel"});
  CHECK(
      problems("{default: {group_size: 64}}", {.hidden = 64, .inner = 64}).first ==
      Found{"model.layers.0.mlp.experts.0.gate_proj (and 7 more): kernels want a hidden size that "
            "is a multiple of 128, not 64"});
  CHECK(problems("{default: {group_size: -1}}").first.empty());
}

TEST_CASE("experts that transformers does not unpack; tests/interop holds it to that") {
  const auto found = [](const std::string& recipe) {
    const auto transformers = problems(recipe).second;
    REQUIRE(transformers.size() <= 1);
    return transformers.empty() ? "" : transformers.front();
  };
  const std::string first = "model.layers.0.mlp.experts.0.gate_proj (and 23 more): ";
  CHECK(found("{default: {group_size: 64, symmetric: false}}") ==
        first + "zero points of experts are not read");
  CHECK(found("{default: {wq: nvfp4}}") ==
        first + "the global scales of experts are left out, and their weights are then wrong");
  CHECK(found("{default: {wq: mxfp8}}") == first + "experts in mxfp8 g32 are not read");
  CHECK(found("{default: {wq: int8, group_size: -1, aq: int8}}") ==
        first + "experts in int8 row aq=int8 are not read");
  CHECK(found("{default: {wq: mxfp4}}").empty());
  CHECK(found("{default: {wq: fp8}}").empty());
  CHECK(found("{default: {wq: mxfp8}, overrides: [{pattern: '*.experts.*', wq: mxfp4}]}").empty());
}

TEST_CASE("GPTQ's layout: kernels for all bits but in experts, which transformers does not read") {
  const std::string recipe =
      "{default: {group_size: 32}, overrides: [{pattern: '*.self_attn.*', wq: int3}]}";
  CHECK(problems(recipe).first.size() == 1);
  const auto [vllm, transformers] = problems(recipe, kServable, Layout::kGptq);
  CHECK(vllm.empty());
  CHECK(transformers == Found{"model.layers.0.mlp.experts.0.gate_proj (and 23 more): experts in "
                              "GPTQ's layout are not read"});
}

TEST_CASE("a quantized router loads nowhere") {
  const auto [vllm, transformers] =
      problems("{default: {group_size: 64}, overrides: [{pattern: '*.mlp.gate', group_size: 64}]}");
  CHECK(vllm == Found{"model.layers.0.mlp.gate (and 1 more): routers must stay dense"});
  CHECK(transformers == vllm);
}

TEST_CASE("a target makes a problem an error, and must be one that is known") {
  const OpenModel open(kServable);
  const auto mixed = loadable(open.plan(
      "{default: {group_size: 64}, overrides: [{pattern: 'model.layers.1.*', group_size: 32}]}"));
  CHECK_NOTHROW(check_target(mixed, "any"));
  CHECK_NOTHROW(check_target(mixed, "vllm"));
  CHECK_THROWS_WITH_AS(check_target(mixed, "transformers"),
                       doctest::Contains("transformers will not load this recipe's checkpoint: "
                                         "model.layers.1.mlp.experts.0.gate_proj: all experts"),
                       Error);
  CHECK_THROWS_WITH_AS(check_target(mixed, "vlm"), "--target \"vlm\", did you mean \"vllm\"?",
                       UsageError);
}

}  // namespace
}  // namespace aqhost
