#include <doctest/doctest.h>

#include <chrono>

#include "config/recipe.h"

namespace aqhost {
namespace {

const std::vector<std::string> kModules{"model.layers.0.self_attn.q_proj",
                                        "model.layers.0.self_attn.o_proj",
                                        "model.layers.0.mlp.experts.0.up_proj",
                                        "model.layers.0.mlp.experts.0.down_proj",
                                        "model.layers.0.mlp.gate",
                                        "model.layers.1.self_attn.q_proj",
                                        "model.layers.1.self_attn.o_proj",
                                        "model.layers.1.mlp.experts.0.up_proj",
                                        "model.layers.1.mlp.experts.0.down_proj",
                                        "model.layers.1.mlp.gate",
                                        "lm_head"};

/// "line: message" of every warning.
std::vector<std::string> lint(const std::string& overrides) {
  std::vector<std::string> found;
  for (const RecipeWarning& w : Recipe::parse("overrides:\n" + overrides, "r").lint(kModules))
    found.push_back(w.where + ": " + w.message);
  return found;
}

using Found = std::vector<std::string>;

TEST_CASE("a recipe in order gives no warning") {
  CHECK(lint("- {pattern: '*.mlp.experts.*', wq: mxfp4, group_size: 32}\n"
             "- {pattern: '*.mlp.gate', wq: bf16, skip: true}\n"
             "- {pattern: lm_head, skip: true}\n")
            .empty());
  CHECK(Recipe().lint(kModules).empty());
}

TEST_CASE("a narrower override after a wider one is what overrides are for") {
  CHECK(lint("- {pattern: '*.mlp.experts.*', wq: mxfp4}\n"
             "- {pattern: '*.down_proj', wq: int8}\n"
             "- {pattern: 'model.layers.1.*.down_proj', group_size: 64}\n")
            .empty());
}

TEST_CASE("a pattern that matches nothing") {
  CHECK(
      lint("- {pattern: '*.mlp.shared_expert.*', wq: mxfp6}\n- {pattern: 're:x', skip: true}\n") ==
      Found{"r:2: the pattern \"*.mlp.shared_expert.*\" matches no module",
            "r:3: the pattern \"re:x\" matches no module"});
}

TEST_CASE("an override whose every key later ones replace") {
  CHECK(lint("- {pattern: '*.q_proj', wq: int8}\n- {pattern: '*', wq: int4}\n") ==
        Found{"r:2: the pattern \"*.q_proj\" has no effect: later ones replace all it sets"});
  CHECK(lint("- {pattern: '*.q_proj', wq: int8, group_size: 32}\n- {pattern: '*_proj', wq: int8}\n")
            .empty());
  // one by layer 0, one by layer 1
  CHECK(lint("- {pattern: '*.q_proj', group_size: 32}\n"
             "- {pattern: 'model.layers.0.*', group_size: 64}\n"
             "- {pattern: 'model.layers.1.*', group_size: 64}\n") ==
        Found{"r:2: the pattern \"*.q_proj\" has no effect: later ones replace all it sets"});
}

TEST_CASE("an override of modules that are skipped") {
  CHECK(lint("- {pattern: '*.mlp.gate', skip: true}\n- {pattern: '*.mlp.gate', wq: int8}\n") ==
        Found{"r:3: the pattern \"*.mlp.gate\" has no effect: the modules it matches are skipped"});
  CHECK(lint("- {pattern: '*.q_proj', group_size: 32}\n- {pattern: '*.q_proj', wq: bf16}\n") ==
        Found{"r:2: the pattern \"*.q_proj\" has no effect: the modules it matches are skipped"});
}

TEST_CASE("a format that crossing later overrides replace in most modules") {
  CHECK(lint("- {pattern: 'model.layers.0.*', wq: int6}\n"
             "- {pattern: '*.self_attn.*', wq: int4}\n"
             "- {pattern: '*.experts.*', wq: mxfp4}\n") ==
        Found{"r:2: the pattern \"model.layers.0.*\" sets wq: int6, but later ones replace that in "
              "4 of the 5 modules it matches"});
  CHECK(lint("- {pattern: '*.experts.*', wq: mxfp4}\n- {pattern: 'model.layers.0.*', wq: int6}\n")
            .empty());
}

/// The modules that a family keeps as they are.
std::vector<bool> kept() {
  std::vector<bool> result;
  for (const std::string& module : kModules)
    result.push_back(module == "lm_head" || module.ends_with(".gate"));
  return result;
}

/// "line: message" of every warning, where lm_head and routers stay as they are unless named.
std::vector<std::string> lint_kept(const std::string& overrides) {
  std::vector<std::string> found;
  for (const RecipeWarning& w :
       Recipe::parse("overrides:\n" + overrides, "r").lint(kModules, kept()))
    found.push_back(w.where + ": " + w.message);
  return found;
}

TEST_CASE("naming a module that the family keeps is an effect of its own") {
  CHECK(lint_kept("- {pattern: lm_head, skip: false}\n").empty());
  CHECK(lint_kept("- {pattern: '*.mlp.gate', group_size: 32}\n- {pattern: '*', group_size: 64}\n")
            .empty());
  CHECK(lint_kept("- {pattern: 're:.*\\.gate$', symmetric: false}\n").empty());
  CHECK(lint_kept("- {pattern: '*.mlp.gate', skip: true}\n").empty());
  CHECK(lint_kept("- {pattern: lm_head, algorithm: rtn}\n") ==
        Found{"r:2: the pattern \"lm_head\" has no effect: the modules it matches are skipped"});
}

TEST_CASE("an override of modules that the family keeps, which it does not name") {
  CHECK(lint_kept("- {pattern: '*.mlp.gat*', wq: int8}\n") ==
        Found{"r:2: the pattern \"*.mlp.gat*\" has no effect: the modules it matches are skipped"});
  CHECK(lint_kept("- {pattern: 'model.layers.0.*', wq: int8}\n").empty());
}

TEST_CASE("of many overrides with the same fault ten are named and the rest counted") {
  std::string overrides;
  for (int i = 0; i < 25; i++) overrides += "- {pattern: 'x" + std::to_string(i) + "', wq: int8}\n";
  const auto found = lint(overrides);
  REQUIRE(found.size() == 11);
  CHECK(found[9] == "r:11: the pattern \"x9\" matches no module");
  CHECK(found[10] == "r:12: of 15 further patterns, too, each matches no module");
}

TEST_CASE("one override per module of a large model takes seconds") {
  // 58 layers of 256 experts; in squares of them it took hours
  std::vector<std::string> modules;
  std::string text = "overrides:\n- {pattern: '*.experts.*', group_size: 64}\n";
  for (int i = 0; i < 58 * 256; i++)
    for (const char* role : {"gate", "up", "down"}) {
      modules.push_back("model.layers." + std::to_string(i / 256) + ".mlp.experts." +
                        std::to_string(i % 256) + "." + role + "_proj");
      text += "- {pattern: " + modules.back() + ", wq: " + (i % 3 == 0 ? "int8" : "int3") + "}\n";
    }
  const auto start = std::chrono::steady_clock::now();
  const Recipe recipe = Recipe::parse(text, "r");
  CHECK(recipe.lint(modules).empty());
  for (const std::string& module : modules)
    CHECK(recipe.resolve(module).options["group_size"] == 64);
  CHECK(recipe.resolve(modules[9]).wq == "int8");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  MESSAGE(modules.size() << " modules and overrides in " << seconds.count() << " s");
  CHECK(seconds.count() < 60);
}

}  // namespace
}  // namespace aqhost
