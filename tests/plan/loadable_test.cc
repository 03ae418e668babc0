#include "plan/loadable.h"

#include <algorithm>

#include "base/error.h"
#include "export/autogptq.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

const SmallModel kServable{.hidden = 128, .inner = 64};

std::vector<Loadable> loads_of(const std::string& recipe, SmallModel sizes = kServable,
                               const Container& container = compressed_tensors()) {
  const OpenModel open(sizes);
  const Plan plan = open.plan(recipe, "", container);
  auto loads = loadable(plan, open.model(), open.reader());
  suggest_group_sizes(loads, plan, open.model(), open.reader(), registry());
  REQUIRE(loads.size() == 4);
  CHECK(loads[0].id == "vllm");
  CHECK(loads[1].id == "sglang");
  CHECK(loads[2].id == "transformers");
  CHECK(loads[3].id == "llamacpp");
  return loads;
}

/// Problems of vLLM, then of transformers.
std::pair<std::vector<std::string>, std::vector<std::string>> problems(
    const std::string& recipe, SmallModel sizes = kServable,
    const Container& container = compressed_tensors()) {
  const auto loads = loads_of(recipe, sizes, container);
  return {loads[0].problems(), loads[2].problems()};
}

using Found = std::vector<std::string>;

TEST_CASE("one format for all loads everywhere") {
  for (const Loadable& l : loads_of("{default: {group_size: 64}}")) {
    CAPTURE(l.id);
    CHECK(l.loads());
    CHECK(l.notes.empty());
  }
}

TEST_CASE("layers may differ in vLLM, not in transformers") {
  const auto [vllm, transformers] = problems(
      "{default: {group_size: 64}, overrides: [{pattern: 'model.layers.1.*', group_size: 32}]}");
  CHECK(vllm.empty());
  CHECK(transformers ==
        Found{"model.layers.1.mlp.experts.0.gate_proj: all experts of a model must be of one "
              "format, and are int4 g64 and int4 g32"});
}

TEST_CASE("if another group size would make an export loadable, the largest is named") {
  const auto remedies = [](const std::string& recipe, SmallModel sizes,
                           const Container& container = compressed_tensors()) {
    Found found;
    for (const Loadable& l : loads_of(recipe, sizes, container)) found.push_back(l.remedy);
    return found;
  };
  const std::string g64 = "group_size: 64 for all modules in int4 would make it loadable";
  const SmallModel odd{.hidden = 192, .inner = 128};
  CHECK(problems("{}", odd).first ==
        Found{"model.layers.0.mlp.experts.0.down_proj (and 1 more): the experts of a layer must be "
              "of one format, and are int4 g64 and int4 g128"});
  // Marlin has no kernel for the hidden size, which no group size changes in SGLang
  CHECK(remedies("{}", odd) == Found{g64, "", g64, ""});
  CHECK(remedies("{default: {group_size: -1}}", odd) == Found{g64, "", "", ""});
  CHECK(remedies("{default: {group_size: 16}}", kServable, autogptq()) == Found{g64, g64, "", g64});
  CHECK(remedies("{default: {group_size: 64}}", kServable) == Found{"", "", "", ""});
  CHECK(remedies("{default: {wq: mxfp6}}", kServable) == Found{"", "", "", ""});
  // formats of one size stay as they are
  const auto mxfp4 = remedies(
      "{default: {group_size: 64}, overrides: [{pattern: '*.experts.*', wq: mxfp4}, {pattern: "
      "'*.k_proj', group_size: 32}]}",
      kServable);
  CHECK(mxfp4[0] == "group_size: 128 for all modules in int4 would make it loadable");
  CHECK_THROWS_WITH_AS(check_target(loads_of("{}", odd), "vllm"), doctest::Contains(g64.c_str()),
                       Error);
}

TEST_CASE("with tensor parallelism, the size that is named fits there, too") {
  const OpenModel open(kServable);
  const Plan plan = open.plan("{default: {group_size: 64}}");
  auto loads = loadable(plan, open.model(), open.reader(), 2);
  suggest_group_sizes(loads, plan, open.model(), open.reader(), registry(), 2);
  CHECK(loads[0].remedy == "group_size: 32 for all modules in int4 would make it loadable");
  CHECK(loads[2].remedy.empty());
}

TEST_CASE("tensor parallelism needs whole heads and whole groups on every GPU") {
  const auto split = [](const std::string& recipe, SmallModel sizes, int32_t gpus) {
    const OpenModel open(sizes);
    const auto loads = loadable(open.plan(recipe), open.model(), open.reader(), gpus);
    for (const std::string& problem : loads[0].refused)
      CHECK(std::count(loads[1].refused.begin(), loads[1].refused.end(), problem) == 1);
    CHECK(loads[2].loads());  // transformers is not asked
    return loads[0].refused;
  };
  const std::string g64 = "{default: {group_size: 64}}", g32 = "{default: {group_size: 32}}";
  CHECK(split(g64, kServable, 1).empty());
  CHECK(split(g32, kServable, 2).empty());
  CHECK(split(g64, kServable, 2) ==
        Found{"model.layers.0.mlp.experts.0.down_proj (and 7 more): each of 2 GPUs has 32 inputs, "
              "which are no whole groups of 64; groups of 32 fit"});
  CHECK(split("{default: {group_size: -1}}", {.hidden = 384, .inner = 192, .heads = 4}, 3) ==
        Found{"layer 0 (and 1 more): 4 heads are not divided evenly over 3 GPUs"});
  CHECK(split("{default: {group_size: -1}}", {.hidden = 128, .inner = 66, .heads = 4}, 4) ==
        Found{"model.layers.0.mlp.experts.0.down_proj (and 7 more): 66 inputs are not divided "
              "evenly over 4 GPUs"});
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

/// What an engine makes of a recipe: "yes", "no", or "wrong", with "+" where it has notes.
std::string verdict(const Loadable& l) {
  const std::string plain = !l.refused.empty() ? "no" : l.wrong.empty() ? "yes" : "wrong";
  return plain + (l.notes.empty() ? "" : "+");
}

struct Case {
  const char* recipe;
  const char *vllm, *sglang, *transformers;
  SmallModel sizes = kServable;
  const Container* container = &compressed_tensors();
};

const SmallModel kOdd{.hidden = 192, .inner = 64};  // 64 divides, 128 does not
const SmallModel kLarge{.layers = 1, .hidden = 256, .inner = 256, .experts = 2, .top_k = 1};

TEST_CASE("what the engines make of each format, in experts and outside them") {
  const Case cases[] = {
      {"{default: {group_size: 32}}", "yes", "yes", "yes"},
      {"{default: {group_size: -1}}", "yes", "yes", "yes"},
      {"{default: {wq: int8, group_size: 64}}", "yes", "yes", "yes"},
      // zero points: in vLLM, those of 8 bits need Humming; SGLang takes them for AWQ's
      {"{default: {group_size: 64, symmetric: false}}", "yes", "wrong", "no"},
      {"{default: {wq: int8, group_size: 64, symmetric: false}}", "yes+", "no", "no"},
      // sizes and groups that Marlin has not
      {"{default: {group_size: 64}}", "yes+", "no", "yes", kOdd},
      {"{default: {wq: int8, group_size: 64}}", "yes+", "no", "yes", kOdd},
      {"{default: {group_size: -1}}", "no", "no", "yes", kOdd},
      {"{default: {group_size: 16}}", "yes+", "no", "yes"},
      {"{default: {group_size: 16, symmetric: false}}", "yes+", "no", "no"},
      // other widths
      {"{default: {wq: int3, group_size: 64}}", "yes+", "no", "yes"},
      {"{default: {wq: int3, group_size: 64, symmetric: false}}", "yes+", "no", "no"},
      {"{default: {wq: int3, group_size: -1}}", "no+", "no", "yes"},
      {"{default: {wq: int8, group_size: -1, symmetric: false}}", "no+", "no", "no"},
      {"{default: {group_size: 64}, overrides: [{pattern: '*.o_proj', wq: int6}]}", "yes+", "no",
       "yes"},
      // rounded inputs
      {"{default: {group_size: 64, aq: int8}}", "no+", "no", "yes+"},
      {"{default: {group_size: 64}, overrides: [{pattern: '*.o_proj', aq: int8}]}", "yes+", "no",
       "yes"},
      {"{default: {wq: int8, group_size: -1, aq: int8}}", "yes", "no", "no"},
      {"{default: {wq: int8, group_size: 0, aq: int8}}", "no", "no", "no"},
      {"{default: {group_size: 128, aq: fp8}}", "yes+", "no+", "yes+", kLarge},
      {"{default: {group_size: 64, aq: fp8}}", "no", "no", "yes+", kLarge},
      // floats
      {"{default: {wq: fp8}}", "no", "no", "yes"},
      {"{default: {wq: fp8, aq: fp8}}", "yes", "yes", "yes+"},
      {"{default: {wq: fp8, aq: fp8, group_size: 0}}", "no", "no", "yes+"},
      {"{default: {group_size: 64}, overrides: [{pattern: '*.o_proj', wq: fp8}]}", "yes", "no",
       "yes"},
      {"{default: {wq: mxfp4}}", "yes+", "no", "yes"},
      {"{default: {wq: mxfp4, aq: mxfp4}}", "yes", "no", "yes+"},
      {"{default: {wq: mxfp8}}", "yes+", "no", "no"},
      {"{default: {wq: mxfp6}}", "no", "no", "yes"},
      {"{default: {wq: nvfp4}}", "yes", "yes", "wrong"},
      {"{default: {wq: nvfp4, aq: nvfp4}}", "yes+", "yes", "wrong"},
      {"{default: {wq: nvfp4, aq: int8}}", "no", "no", "wrong"},
      {"{default: {wq: nf4, group_size: 64}}", "no", "no", "no"},
      // GPTQ's layout
      {"{default: {group_size: 64}}", "yes", "yes", "no", kServable, &autogptq()},
      {"{default: {group_size: 64}, overrides: [{pattern: '*.o_proj', wq: int3}]}", "no", "no",
       "no", kServable, &autogptq()},
      {"{default: {group_size: 64}, overrides: [{pattern: '*.1.*.experts.*', wq: int8}]}", "yes",
       "no", "no", kServable, &autogptq()},
      {"{default: {group_size: 64}}", "yes+", "no", "no", kOdd, &autogptq()},
      {"{default: {group_size: 16}}", "no+", "no", "no", kServable, &autogptq()},
  };
  for (const Case& c : cases) {
    CAPTURE(c.recipe);
    const auto loads = loads_of(c.recipe, c.sizes, *c.container);
    CHECK(verdict(loads[0]) == c.vllm);
    CHECK(verdict(loads[1]) == c.sglang);
    CHECK(verdict(loads[2]) == c.transformers);
  }
}

TEST_CASE("a sentence that is true of many modules names the first and counts the others") {
  CHECK(loads_of("{default: {group_size: 64, aq: int8}}")[0].refused ==
        Found{"model.layers.0.mlp.experts.0.gate_proj (and 23 more): experts in int4 g64 aq=int8 "
              "have no kernel"});
  CHECK(loads_of("{default: {group_size: 64}}", kOdd)[0].notes ==
        Found{"model.layers.0.mlp.experts.0.gate_proj (and 23 more): the hidden size of 192, which "
              "128 does not divide, leaves the Triton kernel for experts, which is slower than "
              "Marlin"});
}

/// The three engines on a model of random weights under another config.json.
std::vector<Loadable> loads_with(const Json& changes) {
  SmallModel sizes = kServable;
  sizes.config = changes.dump();
  return loads_of("{default: {group_size: 64}}", sizes);
}

TEST_CASE("what an engine has not of a model's options") {
  CHECK(verdict(loads_with({{"norm_topk_prob", true}})[0]) == "wrong");
  CHECK(verdict(loads_with({{"norm_topk_prob", true}})[2]) == "yes");
  CHECK(loads_with({{"clip_qkv", 8.0}})[1].wrong == Found{"config.json: SGLang ignores clip_qkv"});
  CHECK(loads_with({{"rms_norm_eps", 1e-6}})[0].wrong ==
        Found{"config.json: vLLM takes 1e-5 for rms_norm_eps"});
  CHECK(verdict(loads_with({{"hidden_act", "gelu"}})[0]) == "wrong");
  CHECK(verdict(loads_with({{"hidden_act", "silu"}})[0]) == "yes");
}

TEST_CASE("a head that an engine does not tie to the embedding") {
  SmallModel sizes = kServable;
  sizes.head = false;
  const auto loads = loads_of("{default: {group_size: 64}}", sizes);
  CHECK(loads[0].wrong ==
        Found{"config.json: vLLM does not tie the head of olmoe to its embedding, and leaves the "
              "head without values"});
  CHECK(verdict(loads[1]) == "wrong");
  CHECK(verdict(loads[2]) == "yes");  // tests/interop holds it to that
  CHECK(verdict(loads_with({{"tie_word_embeddings", true}})[0]) == "yes");  // it has a head
}

TEST_CASE("a model_type that engines do not find the family by") {
  for (const Json& type : {Json("llama"), Json()}) {
    SmallModel sizes = kServable;
    sizes.config = Json{{"model_type", type}}.dump();
    for (const Loadable& l : loads_of("{default: {group_size: 64}}", sizes)) {
      CAPTURE(l.id);
      if (l.gguf) continue;  // the GGUF file names the family
      REQUIRE(!l.refused.empty());
      CHECK(l.refused.front().find("finds this family under \"olmoe\"") != std::string::npos);
    }
  }
}

TEST_CASE("biases that an engine drops") {
  SmallModel sizes = kServable;
  sizes.biases = true;
  const auto loads = loads_of("{default: {group_size: 64}}", sizes);
  CHECK(loads[0].wrong == Found{"config.json: vLLM drops the biases of the attention's o",
                                "config.json: vLLM drops the biases of q, k and v"});
  CHECK(verdict(loads[1]) == "wrong");
  CHECK(verdict(loads[2]) == "yes");  // OLMoE has them there
}

TEST_CASE("the engines' names have the versions that the rules were read in") {
  const auto loads = loads_of("{default: {group_size: 64}}");
  CHECK(loads[0].name() == "vLLM 0.33");
  CHECK(loads[0].run);
  CHECK(!loads[1].run);
  CHECK(loads[2].name() == "transformers 5.17");
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

TEST_CASE("llama.cpp: what GGUF has a type for, and what it knows of the model") {
  const auto found = [](const std::string& recipe, SmallModel sizes = kServable) {
    return loads_of(recipe, sizes)[3].problems();
  };
  const std::string first = "model.layers.0.self_attn.q_proj (and 31 more): ";
  CHECK(found("{default: {group_size: 64}}").empty());
  CHECK(found("{default: {wq: mxfp4}}").empty());
  CHECK(found("{default: {wq: int3, group_size: 64}}")
            .at(0)
            .starts_with(first + "GGUF has no type for the numbers of int3 g64"));
  CHECK(found("{default: {group_size: 64, aq: int8}}") ==
        Found{first + "a GGUF file does not say how inputs are rounded; llama.cpp rounds them to 8 "
                      "bits in its own way"});
  SmallModel sizes = kServable;
  sizes.config = Json{{"norm_topk_prob", true}}.dump();
  CHECK(found("{default: {group_size: 64}}", sizes)
            .at(0)
            .find("llama.cpp's architecture olmoe has no norm_topk_prob: true") !=
        std::string::npos);
  CHECK(loads_of("{default: {group_size: 64}}")[3].name() == "llama.cpp b11434");
}

TEST_CASE("a quantized router loads nowhere") {
  const auto [vllm, transformers] =
      problems("{default: {group_size: 64}, overrides: [{pattern: '*.mlp.gate', group_size: 64}]}");
  CHECK(vllm == Found{"model.layers.0.mlp.gate (and 1 more): routers must stay dense"});
  CHECK(transformers == vllm);
}

TEST_CASE("a target makes a problem an error, a note none, and must be one that is known") {
  const OpenModel open(kServable);
  const auto of = [&](const std::string& recipe) {
    return loadable(open.plan(recipe), open.model(), open.reader());
  };
  const auto mixed =
      of("{default: {group_size: 64}, overrides: [{pattern: 'model.layers.1.*', group_size: 32}]}");
  CHECK_NOTHROW(check_target(mixed, "any"));
  CHECK_NOTHROW(check_target(mixed, "vllm"));
  CHECK_THROWS_WITH_AS(
      check_target(mixed, "transformers"),
      doctest::Contains("transformers 5.17 will load the result and give wrong answers: "
                        "model.layers.1.mlp.experts.0.gate_proj: all experts"),
      Error);
  CHECK_THROWS_WITH_AS(check_target(of("{default: {wq: mxfp6}}"), "vllm"),
                       doctest::Contains("vLLM 0.33 will not load the result: "), Error);
  CHECK_NOTHROW(check_target(of("{default: {wq: mxfp4}}"), "vllm"));  // has a note
  CHECK_THROWS_WITH_AS(check_target(mixed, "vlm"), "--target \"vlm\", did you mean \"vllm\"?",
                       UsageError);
}

}  // namespace
}  // namespace aqhost
