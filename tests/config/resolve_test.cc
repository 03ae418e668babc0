#include <doctest/doctest.h>

#include "config/recipe.h"

namespace aqhost {
namespace {

Recipe recipe_of(const std::string& text) { return Recipe::parse(text, "r.yaml"); }

TEST_CASE("re: patterns are regular expressions over the whole name") {
  const Recipe recipe = recipe_of(R"(overrides:
  - {pattern: 're:model\.layers\.(0|1)\..*_proj', wq: int8}
)");
  CHECK(recipe.resolve("model.layers.1.mlp.up_proj").wq == "int8");
  CHECK(recipe.resolve("model.layers.2.mlp.up_proj").wq == "int4");
  CHECK(recipe.resolve("model.layers.1.mlp.up_proj.x").wq == "int4");
  CHECK(recipe.resolve("xmodel.layers.1.mlp.up_proj").wq == "int4");
}

TEST_CASE("later overrides win key by key") {
  const Recipe recipe = recipe_of(R"(default: {group_size: 64, algorithm: rtn}
overrides:
  - {pattern: "a.*", wq: int8, group_size: 32, routing_power: 2}
  - {pattern: "*.b", group_size: 16}
)");
  const ModuleRecipe both = recipe.resolve("a.b");
  CHECK(both.wq == "int8");
  CHECK(both.options["group_size"] == 16);
  CHECK(both.algorithm == "rtn");
  CHECK(both.routing_power == 2);
  CHECK(recipe.resolve("a.c").options["group_size"] == 32);
  CHECK(recipe.resolve("x.b").wq == "int4");
  CHECK(recipe.resolve("x.b").options["group_size"] == 16);
  CHECK(recipe.resolve("x.c").options["group_size"] == 64);
}

TEST_CASE("another format forgets what described the one before, but not the group size") {
  const Recipe recipe = recipe_of(R"(
default: {wq: int4, group_size: 64, symmetric: false, scale_dtype: fp16}
overrides:
  - {pattern: "a", wq: mxfp4}
  - {pattern: "b", wq: int4}
  - {pattern: "c", wq: mxfp6, element: e3m2}
)");
  CHECK(recipe.resolve("a").options == Json{{"group_size", 64}});
  CHECK(recipe.resolve("b").options ==
        Json{{"group_size", 64}, {"symmetric", false}, {"scale_dtype", "fp16"}});
  CHECK(recipe.resolve("c").options == Json{{"group_size", 64}, {"element", "e3m2"}});
}

TEST_CASE("full precision as format, and skip, leave a module as it is") {
  const Recipe recipe = recipe_of(R"(
overrides:
  - {pattern: "a", wq: bf16}
  - {pattern: "b", wq: fp16}
  - {pattern: "c", skip: true}
  - {pattern: "d", wq: fp32}
  - {pattern: "d", wq: int8}
  - {pattern: "e", skip: true}
  - {pattern: "e", skip: false, wq: int8}
)");
  for (const char* name : {"a", "b", "c"}) CHECK(recipe.resolve(name).skip);
  for (const char* name : {"d", "e"}) {
    CHECK(!recipe.resolve(name).skip);
    CHECK(recipe.resolve(name).wq == "int8");
  }
  CHECK(recipe_of("default: {wq: bf16}").resolve("x").skip);
}

TEST_CASE("a module is named where a pattern ends in its own name") {
  const auto named = [](const std::string& pattern, const std::string& module) {
    return recipe_of("overrides: [{pattern: '" + pattern + "', wq: int8}]").resolve(module).named;
  };
  CHECK(named("lm_head", "lm_head"));
  CHECK(named("*.mlp.gate", "model.layers.0.mlp.gate"));
  CHECK(named("*gate", "model.layers.0.mlp.gate"));
  CHECK(named("re:.*\\.gate", "model.layers.0.mlp.gate"));
  CHECK(named("re:^lm_head$", "lm_head"));
  CHECK(!named("*", "lm_head"));
  CHECK(!named("*.mlp.*", "model.layers.0.mlp.gate"));
  CHECK(!named("model.layers.0.*", "model.layers.0.mlp.gate"));
  CHECK(!named("*head", "lm_head"));
  CHECK(!named("re:.*", "lm_head"));
  CHECK(!named("lm_head", "model.layers.0.mlp.gate"));
}

TEST_CASE("an override names a module only if it says how weights are stored") {
  const auto named = [](const std::string& keys) {
    return recipe_of("overrides: [{pattern: lm_head, " + keys + "}]").resolve("lm_head").named;
  };
  for (const char* keys : {"wq: int8", "group_size: 32", "skip: false", "symmetric: false",
                           "element: e2m3", "scale_rule: mse", "scale_dtype: float16"}) {
    CAPTURE(keys);
    CHECK(named(keys));
  }
  for (const char* keys :
       {"aq: bf16", "algorithm: rtn", "routing_power: 1", "refine: {steps: 0}"}) {
    CAPTURE(keys);
    CHECK(!named(keys));
  }
}

TEST_CASE("a group size is asked for where it stands with the wq, or after it") {
  const auto asked = [](const std::string& text) {
    return recipe_of(text).resolve("a").group_size_asked;
  };
  CHECK(!asked("{}"));
  CHECK(!asked("default: {wq: fp8}"));
  CHECK(asked("default: {wq: mxfp6, group_size: 64}"));
  CHECK(asked("overrides: [{pattern: a, wq: mxfp6, group_size: 64}]"));
  CHECK(asked("overrides: [{pattern: a, wq: mxfp6}, {pattern: a, group_size: 64}]"));
  CHECK(!asked("{default: {wq: int4, group_size: 64}, overrides: [{pattern: a, wq: mxfp6}]}"));
  CHECK(asked("{default: {wq: int4, group_size: 64}, overrides: [{pattern: a, wq: int4}]}"));
}

TEST_CASE("where() tells the line of the key that a module takes") {
  const Recipe recipe = Recipe::parse(R"(default:
  wq: int4
  group_size: 64
overrides:
  - pattern: "a.*"
    group_size: 32
    aq: int8
  - {pattern: a.b, aq: fp8}
  - {pattern: "*", skip: false}
)",
                                      "r.yaml");
  CHECK(recipe.where("b", "group_size") == "r.yaml:3");
  CHECK(recipe.where("a.c", "group_size") == "r.yaml:6");
  CHECK(recipe.where("a.c", "aq") == "r.yaml:7");
  CHECK(recipe.where("a.b", "aq") == "r.yaml:8");
  CHECK(recipe.where("a.b", "wq") == "r.yaml:2");
  CHECK(recipe.where("b", "aq").empty());
  CHECK(Recipe().where("b", "wq").empty());
}

TEST_CASE("overrides of an exact name and patterns keep their order") {
  const Recipe recipe = recipe_of(R"(overrides:
  - {pattern: "a.b", wq: int8, group_size: 16}
  - {pattern: "a.*", wq: int6}
  - {pattern: "a.b", group_size: 32}
  - {pattern: "*", group_size: 64}
  - {pattern: "a.b", aq: int8}
)");
  CHECK(recipe.resolve("a.b").wq == "int6");
  CHECK(recipe.resolve("a.b").aq == "int8");
  CHECK(recipe.resolve("a.b").options["group_size"] == 64);
  CHECK(recipe.resolve("a.c").wq == "int6");
  CHECK(recipe.resolve("x").wq == "int4");
}

}  // namespace
}  // namespace aqhost
