#include <doctest/doctest.h>

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

TEST_CASE("an override without a key") {
  CHECK(lint("- {pattern: '*.q_proj', comment: nothing yet}\n") ==
        Found{"r:2: the pattern \"*.q_proj\" sets nothing"});
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

}  // namespace
}  // namespace aqhost
