#include "plan/engine.h"

#include <algorithm>

#include "base/error.h"
#include "config/yaml.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

/// The first of the rules that holds.
const Rule* first(const std::vector<Rule>& rules, const ModelCase& model,
                  const ModuleCase& module) {
  const auto it = std::find_if(rules.begin(), rules.end(), [&](const Rule& rule) {
    return rule.conditions.hold(model, module);
  });
  return it == rules.end() ? nullptr : &*it;
}

TEST_CASE("each row of the engines' files is the one that holds for its example") {
  REQUIRE(engines().size() == 4);
  for (const Engine& engine : engines()) {
    CAPTURE(engine.name);
    CHECK(engine.formats.size() >= 5);
    for (const Rule& rule : engine.formats) {
      CAPTURE(rule.sentence);
      CAPTURE(rule.source);
      const auto [model, module] = read_example(Field(rule.example, "example"));
      CHECK(first(engine.formats, model, module) == &rule);
    }
    for (const Rule& rule : engine.rules) {
      CAPTURE(rule.sentence);
      const auto [model, module] = read_example(Field(rule.example, "example"));
      CHECK(rule.conditions.hold(model, module));
      CHECK(!rule.conditions.hold({.family = "another"}, {}));
      CHECK(fill_in(rule.sentence, model, module, rule.conditions.missing(model)).find("{") ==
            (rule.sentence.find("{pattern")));
    }
  }
}

TEST_CASE("each engine says something of every option of a model that it ignores or refuses") {
  for (const Engine& engine : engines()) {
    CAPTURE(engine.name);
    std::set<std::string> ignored, refused;
    for (const EngineFamily& family : engine.families) {
      CHECK(!family.types.empty());
      ignored.insert(family.ignores.begin(), family.ignores.end());
      refused.insert(family.refuses.begin(), family.refuses.end());
    }
    for (const auto& [option, sentence] : engine.ignored) CHECK(ignored.contains(option));
    for (const auto& [option, sentence] : engine.refused) CHECK(refused.contains(option));
  }
}

const std::string kHead = "{id: x, engine: X, version: '1', source: s, formats: [";
const std::string kLast = "{loads: true, source: f, example: {}}";

/// What is said of a file with this row of a format.
std::string said(const std::string& row) {
  try {
    (void)read_engine(kHead + row + ", " + kLast + "]}", "x.yaml");
    return "accepted";
  } catch (const Error& e) {
    return e.what();
  }
}

TEST_CASE("a wrong row is refused by its file and field") {
  const std::string rest = ", source: f, example: {}}";
  CHECK(said("{bits: 3, refused: no" + rest) == "accepted");
  CHECK(said("{bit: 3, refused: no" + rest) ==
        "x.yaml: formats[0]: unknown key \"bit\", did you mean \"bits\"?");
  CHECK(said("{bits: three, refused: no" + rest)
            .starts_with("x.yaml: formats[0].bits: expected an integer"));
  CHECK(said("{bits: [3, x], refused: no" + rest).starts_with("x.yaml: formats[0].bits[1]: "));
  CHECK(said("{sizes_multiple_of: 0, refused: no" + rest)
            .starts_with("x.yaml: formats[0].sizes_multiple_of: expected an integer from 1"));
  CHECK(said("{bits: [], refused: no" + rest) ==
        "x.yaml: formats[0].bits: expected a value, or a list of some, found array");
  CHECK(said("{of: expert, refused: no" + rest) ==
        "x.yaml: formats[0].of: \"expert\", did you mean \"experts\"?");
  CHECK(said("{has: qkv_bais, refused: no" + rest) ==
        "x.yaml: formats[0].has: \"qkv_bais\", did you mean \"qkv_bias\"?");
  CHECK(said("{storage: pack_quantized, refused: no" + rest) ==
        "x.yaml: formats[0].storage: \"pack_quantized\", did you mean \"pack-quantized\"?");
  CHECK(said("{bits: 3" + rest).find("one of loads, note, refused and wrong") != std::string::npos);
  CHECK(said("{bits: 3, note: a, wrong: b" + rest).find("one of loads, note") != std::string::npos);
  CHECK(said("{bits: 3, note: '{bit} bits'" + rest) ==
        "x.yaml: formats[0].note: nothing is known by the name {bit}");
  CHECK(said("{bits: 3, note: a, example: {}}") ==
        "x.yaml: formats[0].source: expected a string, found nothing");
  CHECK(said("{bits: 3, note: a, source: f}") ==
        "x.yaml: formats[0].example: expected an object, found nothing");
  CHECK(said("{bits: 3, note: a, source: f, example: {bit: 3}}") ==
        "x.yaml: formats[0].example: unknown key \"bit\", did you mean \"bits\"?");
  CHECK(said("{bits: 3, bits: 4" + rest) == "x.yaml:1: the key \"bits\" appears twice");
}

TEST_CASE("a wrong file is refused by the field at the top") {
  const auto refused = [](const std::string& text, const std::string& message) {
    CHECK_THROWS_WITH_AS(read_engine(text, "x.yaml"), doctest::Contains(message.c_str()), Error);
  };
  refused("[", "x.yaml:1: ");
  refused("{id: x, engin: X}", "x.yaml: unknown key \"engin\", did you mean \"engine\"?");
  refused("{id: x, engine: X, version: 0.5, source: s}", "x.yaml: version: expected a string");
  refused(kHead + "{bits: 3, loads: true, source: f, example: {}}]}",
          "x.yaml: formats: expected a list whose last row has no condition");
  const std::string rows =
      kHead + kLast + "], families: [{family: f, source: s, model_types: [f], ";
  refused(rows + "ignores: [no_bias]}]}", "x.yaml: families[0].ignores[0]: \"no_bias\"");
  refused(rows + "ignores: [qkv_bias]}]}",
          "x.yaml: families[0]: options.qkv_bias.ignored is missing, and f needs it");
  refused(kHead + kLast + "], one_format: [{of: [p], name: n, source: s}]}",
          "x.yaml: one_format[0].of[0]: \"p\"");
}

TEST_CASE("scalars of YAML are numbers, flags and texts") {
  CHECK(parse_yaml("{a: 1, b: -1, c: 1e-5, d: true, e: 'true', f: '0.33', g: null, h: [x, 2]}",
                   "f") == Json{{"a", 1},
                                {"b", -1},
                                {"c", 1e-5},
                                {"d", true},
                                {"e", "true"},
                                {"f", "0.33"},
                                {"g", nullptr},
                                {"h", {"x", 2}}});
}

}  // namespace
}  // namespace aqhost
