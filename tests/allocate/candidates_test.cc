#include "allocate/candidates.h"

#include <doctest/doctest.h>

#include <fstream>

#include "base/error.h"
#include "config/recipe.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

using Names = std::vector<std::string>;

/// Modules of a model with 12 layers of 11 experts.
Names model_names() {
  Names names;
  for (int layer = 0; layer < 12; layer++) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    for (const char* module : {"q_proj", "k_proj", "v_proj", "o_proj"})
      names.push_back(prefix + "self_attn." + module);
    names.push_back(prefix + "mlp.gate");
    for (int expert = 0; expert < 11; expert++)
      for (const char* module : {"gate_proj", "up_proj", "down_proj"})
        names.push_back(fmt::format("{}mlp.experts.{}.{}", prefix, expert, module));
  }
  names.emplace_back("lm_head");
  return names;
}

Names select(const std::string& expression) {
  Names selected;
  for (const std::string& name : model_names())
    if (std::regex_match(name, std::regex(expression))) selected.push_back(name);
  return selected;
}

Names patterns(const std::string& expression, bool spelled_out = false) {
  return patterns_for(select(expression), model_names(), spelled_out);
}

TEST_CASE("a pattern is a glob if that is enough") {
  CHECK(patterns(".*o_proj") == Names{"model.layers.*.self_attn.o_proj"});
  CHECK(patterns(".*experts.*") == Names{"model.layers.*.mlp.experts.*.*"});
  CHECK(patterns(R"(model\.layers\.3\.mlp\.experts.*)") == Names{"model.layers.3.mlp.experts.*.*"});
  CHECK(patterns("lm_head") == Names{"lm_head"});
}

TEST_CASE("layers and matrices are listed in a regular expression") {
  CHECK(patterns(R"(model\.layers\.(2|10)\.self_attn\.[qkv]_proj)") ==
        Names{R"(re:model\.layers\.(2|10)\.self_attn\.(k_proj|q_proj|v_proj))"});
  CHECK(patterns(R"(model\.layers\.(0|11)\.mlp\.experts\.\d+\.down_proj)") ==
        Names{R"(re:model\.layers\.(0|11)\.mlp\.experts\.\d+\.down_proj)"});
  CHECK(patterns(R"(model\.layers\.(0|1)\.mlp\.experts\.(3|4)\.down_proj)") ==
        Names{R"(re:model\.layers\.(0|1)\.mlp\.experts\.(3|4)\.down_proj)"});
}

TEST_CASE("names that fit no pattern are listed") {
  const Names names{"model.layers.0.mlp.experts.3.up_proj", "model.layers.1.mlp.experts.4.up_proj"};
  CHECK(patterns_for(names, model_names(), false) == names);
}

TEST_CASE("a pattern for modules that the family keeps ends in their name") {
  CHECK(patterns(R"(model\.layers\.(0|1)\.(mlp\.gate|self_attn\.o_proj))", true) ==
        Names{R"(re:model\.layers\.(0|1)\.self_attn\.o_proj)",
              R"(re:model\.layers\.(0|1)\.mlp\.gate)"});
}

TEST_CASE("candidates are formats with options") {
  const auto candidates = parse_candidates("int4,int2:group_size=32:symmetric=false,bf16");
  REQUIRE(candidates.size() == 3);
  CHECK(candidates[0].keys == Json{{"wq", "int4"}});
  CHECK(candidates[1].keys == Json{{"wq", "int2"}, {"group_size", 32}, {"symmetric", false}});
  CHECK_FALSE(candidates[1].dense());
  CHECK(candidates[2].dense());
}

TEST_CASE("what is wrong with a candidate is said") {
  CHECK_THROWS_WITH_AS(parse_candidates("int4,"),
                       "--candidates: a candidate is empty; give formats such as int2,int3,int4",
                       UsageError);
  CHECK_THROWS_WITH_AS(parse_candidates("int4,int3,int4"), "--candidates: int4 appears twice",
                       UsageError);
  CHECK_THROWS_WITH_AS(parse_candidates("int4:size=3"),
                       "--candidates: \"size=3\" in \"int4:size=3\" is not KEY=VALUE with one of "
                       "the keys group_size, symmetric, element, scale_rule, scale_dtype",
                       UsageError);
  CHECK_THROWS_WITH_AS(parse_candidates("bf16:group_size=32"),
                       "--candidates: bf16:group_size=32: bf16 has no options", UsageError);
  CHECK_THROWS_AS(parse_candidates("int4:group_size=-7"), Error);
}

TEST_CASE("a recipe keeps everything but the formats, and gets the rows") {
  const TempFolder folder;
  const std::string file = (folder.path() / "base.yaml").string();
  std::ofstream(file) << "default: {wq: int4, symmetric: false, group_size: 64}\n"
                         "percdamp: 0.05\n"
                         "overrides:\n"
                         "  - {pattern: '*.q_proj', wq: int8}\n"
                         "  - {pattern: '*.k_proj', skip: true, refine: {steps: 7}}\n"
                         "  - {pattern: 're:.*\\.v_proj', wq: mxfp4, group_size: 32, aq: int8}\n";
  const std::string text =
      BaseRecipe(file).with({{"*.v_proj", {{"wq", "int3"}}, "a comment"}}, "first\nsecond");
  CHECK(text ==
        "# first\n# second\n"
        "percdamp: 0.05\n"
        "default: {group_size: 64}\n"
        "overrides:\n"
        "  - {pattern: \"*.k_proj\", refine: {steps: 7}}\n"
        "  - {pattern: 're:.*\\.v_proj', aq: \"int8\", group_size: 32}\n"
        "  - {pattern: \"*.v_proj\", wq: int3}  # a comment\n");
  const Recipe recipe = Recipe::parse(text, "result.yaml");
  CHECK(recipe.settings().percdamp == 0.05);
  const ModuleRecipe v = recipe.resolve("a.v_proj"), k = recipe.resolve("a.k_proj");
  CHECK(v.wq == "int3");
  CHECK(v.aq == "int8");
  CHECK(v.options == Json{{"group_size", 32}});
  CHECK(k.refine_steps == 7);
  CHECK_FALSE(k.skip);
}

}  // namespace
}  // namespace aqhost
