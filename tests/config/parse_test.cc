#include <doctest/doctest.h>

#include "base/error.h"
#include "base/file.h"
#include "config/recipe.h"
#include "temp_folder.h"

namespace aqhost {
namespace {

using doctest::Contains;

doctest::String refused(const std::string& text) {
  try {
    Recipe::parse(text, "r.yaml");
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST_CASE("a recipe of every key, in YAML and in JSON, says the same") {
  const std::string yaml = R"(comment: all there is
default: {wq: int4, aq: bf16, group_size: 64, comment: here too}
overrides:
  - pattern: "*.q"
    wq: mxfp6
    element: e2m3
    scale_rule: even
    scale_dtype: bf16
    symmetric: no
    algorithm: rtn
    routing_power: 0.5
    refine: {steps: 200, batch: 8}
  - {pattern: "*.r", skip: true, comment: router}
sequential: false
actorder: none
percdamp: 0.05
error_feedback: 0.5
min_tokens: 0
calibrate_all_experts: true
strict: yes
)";
  const std::string json = R"({"comment": "all there is",
    "default": {"wq": "int4", "aq": "bf16", "group_size": 64, "comment": "here too"},
    "overrides": [
      {"pattern": "*.q", "wq": "mxfp6", "element": "e2m3", "scale_rule": "even",
       "scale_dtype": "bf16", "symmetric": false, "algorithm": "rtn", "routing_power": 0.5,
       "refine": {"steps": 200, "batch": 8}},
      {"pattern": "*.r", "skip": true, "comment": "router"}],
    "sequential": false, "actorder": "none", "percdamp": 5e-2, "error_feedback": 0.5, "min_tokens": 0,
    "calibrate_all_experts": true, "strict": true})";
  for (const std::string& text : {yaml, json}) {
    const Recipe recipe = Recipe::parse(text, "r");
    const RunSettings& s = recipe.settings();
    CHECK(!s.sequential);
    CHECK(!s.actorder);
    CHECK(s.percdamp == 0.05);
    CHECK(s.error_feedback == 0.5);
    CHECK(s.min_tokens == 0);
    CHECK(s.calibrate_all_experts);
    CHECK(s.strict);
    const ModuleRecipe q = recipe.resolve("a.q");
    CHECK(q.wq == "mxfp6");
    CHECK(q.algorithm == "rtn");
    CHECK(q.routing_power == 0.5);
    CHECK(q.refine_steps == 200);
    CHECK(q.refine_batch == 8);
    const Json expected{{"group_size", 64},
                        {"element", "e2m3"},
                        {"scale_rule", "even"},
                        {"scale_dtype", "bf16"},
                        {"symmetric", false}};
    CHECK(q.options == expected);
    CHECK(recipe.resolve("a.r").skip);
  }
}

TEST_CASE("a recipe with nothing in it is int4 in groups of 128, by GPTQ, with the defaults") {
  for (const Recipe& recipe :
       {Recipe(), Recipe::parse("{}", "r"), Recipe::parse("default: {}", "r")}) {
    const ModuleRecipe m = recipe.resolve("a.b");
    CHECK(m.wq == "int4");
    CHECK(m.aq == "bf16");
    CHECK(m.algorithm == "gptq");
    CHECK(m.routing_power == 1);
    CHECK(m.options == Json{{"group_size", 128}});
    CHECK(!m.skip);
    CHECK(!m.named);
    const RunSettings& s = recipe.settings();
    CHECK(s.sequential);
    CHECK(s.actorder);
    CHECK(s.percdamp == 0.1);
    CHECK(s.error_feedback == 0.75);
    CHECK(m.refine_steps == 0);
    CHECK(!s.min_tokens);
    CHECK(!s.calibrate_all_experts);
    CHECK(!s.strict);
  }
}

TEST_CASE("an unknown key is named with its line and the nearest known one") {
  CHECK(refused("default:\n  wq: int4\n  groupsize: 64\n") ==
        "r.yaml:3: unknown key \"groupsize\" in the default, did you mean \"group_size\"?");
  CHECK(refused("overide: []\n") ==
        "r.yaml:1: unknown key \"overide\" in the recipe, did you mean \"overrides\"?");
  CHECK(refused("overrides:\n- {pattern: a, skip: true}\n- patern: b\n") ==
        "r.yaml:3: unknown key \"patern\" in the override, did you mean \"pattern\"?");
  CHECK(refused("{\n\"default\": {\"something\": 1}}") ==
        Contains("r.yaml:2: unknown key \"something\" in the default, known: wq, aq, group_size"));
  CHECK(refused("default: {pattern: a}\n") == Contains("unknown key \"pattern\" in the default"));
  CHECK(refused("default: {wq: int4, wq: int8}\n") == "r.yaml:1: the key \"wq\" appears twice");
  CHECK(refused("{[1]: 2}") == "r.yaml:1: a key of the recipe is a list, expected a word");
}

TEST_CASE("a value of the wrong type or out of range says what came and what was expected") {
  const auto row = [](const std::string& keys) { return refused("\ndefault: {" + keys + "}"); };
  CHECK(row("group_size: big") ==
        "r.yaml:2: group_size is \"big\", expected a number from 1 to 1048576, -1 for a row, or 0 "
        "for a whole matrix");
  CHECK(row("group_size: -2") == Contains("group_size is \"-2\""));
  CHECK(row("group_size: 64.5") == Contains("group_size is \"64.5\""));
  CHECK(row("group_size: 99999999999999999999") == Contains("expected a number from 1 to 1048576"));
  CHECK(row("group_size: [1]") == Contains("group_size is a list"));
  CHECK(row("wq: [int4]") == "r.yaml:2: wq is a list, expected a word");
  CHECK(row("wq:") == "r.yaml:2: wq is nothing, expected a word");
  CHECK(row("wq: ''") == Contains("wq is \"\", expected a word"));
  CHECK(row("skip: maybe") == "r.yaml:2: skip is \"maybe\", expected true or false");
  CHECK(row("symmetric: 2") == Contains("symmetric is \"2\", expected true or false"));
  CHECK(row("routing_power: -1") ==
        "r.yaml:2: routing_power is \"-1\", expected a number from 0 to 4");
  CHECK(row("routing_power: .nan") == Contains("expected a number from 0 to 4"));
  CHECK(row("algorithm: gtpq") == "r.yaml:2: algorithm is \"gtpq\", did you mean \"gptq\"?");
  CHECK(row("algorithm: awesome") == "r.yaml:2: algorithm is \"awesome\", expected gptq or rtn");
  CHECK(refused("percdamp: 0") ==
        "r.yaml:1: percdamp is \"0\", expected a number from 1e-06 to 10");
  CHECK(row("refine: 200") ==
        "r.yaml:2: refine is \"200\", expected a map like {steps: 200, batch: 16}");
  CHECK(row("refine: {batch: 4}") == Contains("refine is a map, expected"));
  CHECK(row("refine: {steps: 200, bath: 4}") ==
        "r.yaml:2: unknown key \"bath\" in the refine, did you mean \"batch\"?");
  CHECK(row("refine: {steps: 200, batch: 0}") == Contains("batch is \"0\", expected"));
  CHECK(refused("error_feedback: 2") ==
        "r.yaml:1: error_feedback is \"2\", expected a number from 0 to 1");
  CHECK(refused("min_tokens: -1") == Contains("min_tokens is \"-1\", expected a whole number"));
  CHECK(refused("sequential: {}") == "r.yaml:1: sequential is a map, expected true or false");
  CHECK(refused("actorder: group") == "r.yaml:1: actorder is \"group\", expected static or none");
}

TEST_CASE("a recipe of another shape is refused") {
  CHECK(refused("") == Contains("r.yaml:"));
  CHECK(refused("") ==
        Contains("expected a map with the keys default and overrides, found nothing"));
  CHECK(refused("int4") == Contains("found \"int4\""));
  CHECK(refused("[1]") == Contains("found a list"));
  CHECK(refused("default: int4") == "r.yaml:1: an entry of default is \"int4\", expected a map");
  CHECK(refused("overrides: {}") == "r.yaml:1: overrides is a map, expected a list");
  CHECK(refused("overrides: [int4]") ==
        "r.yaml:1: an entry of override is \"int4\", expected a map");
  CHECK(refused("overrides:\n- {wq: int4}") == "r.yaml:2: an override without a pattern");
  CHECK(refused("overrides:\n- {pattern: [a]}") == "r.yaml:2: pattern is a list, expected a word");
  CHECK(refused("default: {wq: int4}\n---\ndefault: {wq: int8}\n") ==
        Contains("r.yaml:2: the recipe has ended before"));
  CHECK(refused("{\"default\": {\"wq\": \"int4\"}\n}\n]}") ==
        Contains("r.yaml:3: illegal flow end"));
}

TEST_CASE("an override that sets nothing is refused with its line") {
  for (const char* rest : {"", ", comment: nothing yet"}) {
    CAPTURE(rest);
    CHECK(refused(std::string("overrides:\n- {pattern: a, wq: int8}\n- {pattern: '*.mlp.gate'") +
                  rest + "}\n") ==
          "r.yaml:3: the override of the pattern \"*.mlp.gate\" sets nothing; give it a key (such "
          "as wq or skip) or remove it");
  }
  CHECK(refused("default: {}\noverrides: []\n") == "accepted");
}

TEST_CASE("syntax errors name the line") {
  CHECK(refused("default:\n  wq: [int4\n") == Contains("r.yaml:3: "));
  CHECK(refused("{\"default\": {\"wq\": \"int4\"") == Contains("r.yaml:1: "));
  CHECK(refused("default: *nowhere\n") == Contains("r.yaml:1: "));
  CHECK(refused("a: b: c\n") == Contains("r.yaml:1: "));
}

TEST_CASE("control characters are refused, which yaml-cpp would read on and on") {
  const std::string inside("default: {wq: int4}\n\x04{\"a\": [\0", 28);
  CHECK(refused(inside) == "r.yaml:2: the byte 0x04 is no character of a text");
  CHECK(refused("default: {wq: int4}\r\n#\ttab\n") == "accepted");
}

TEST_CASE("a recipe that is not UTF-8 is refused with its line") {
  CHECK(refused("default: {wq: int4}\noverrides:\n- {pattern: \"*\", element: \xe9}\n") ==
        "r.yaml:3: this line is not UTF-8; save the recipe in that encoding");
  CHECK(refused("comment: caf\u00e9\ndefault: {wq: int4}\n") == "accepted");
}

TEST_CASE("a regular expression that is none is refused with its line") {
  CHECK(refused("overrides:\n- pattern: 're:(a'\n") ==
        Contains("r.yaml:2: \"(a\" is no valid regular expression: "));
}

TEST_CASE("a file is named as it was given; one that is missing, too") {
  const TempFolder folder;
  write_file(folder / "bad.yaml", "default: {wq: }\n");
  CHECK_THROWS_WITH_AS(Recipe::load(folder / "bad.yaml"), Contains("bad.yaml:1: wq is nothing"),
                       Error);
  CHECK_THROWS_WITH_AS(Recipe::load("no/such.yaml"), "no/such.yaml: No such file or directory",
                       Error);
}

TEST_CASE("formats() lists every format that is named, with its line") {
  const Recipe recipe = Recipe::parse(
      "default:\n  group_size: 64\n  wq: int4\n"
      "overrides:\n- {pattern: a, wq: mxfp4}\n- {pattern: b, skip: true}\n- {pattern: c, wq: "
      "bf16}\n",
      "r.yaml");
  const std::vector<std::pair<std::string, std::string>> expected{{"int4", "r.yaml:3"},
                                                                  {"mxfp4", "r.yaml:5"}};
  CHECK(recipe.formats() == expected);
  CHECK(Recipe().formats().empty());
  using Formats = std::vector<std::pair<std::string, std::string>>;
  CHECK(Recipe::parse("default: {wq: int8, aq: int8}\n"
                      "overrides:\n- {pattern: a, aq: bf16}\n- {pattern: b, aq: fp16}\n",
                      "r.yaml")
            .activation_formats() == Formats{{"int8", "r.yaml:1"}, {"fp16", "r.yaml:4"}});
}

}  // namespace
}  // namespace aqhost
