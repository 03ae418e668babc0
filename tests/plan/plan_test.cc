#include "plan/plan.h"

#include <algorithm>

#include "base/error.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

const PlannedModule& find(const Plan& plan, const std::string& name) {
  const auto it = std::find_if(plan.modules.begin(), plan.modules.end(),
                               [&](const PlannedModule& m) { return m.module->name == name; });
  REQUIRE(it != plan.modules.end());
  return *it;
}

using Found = std::vector<std::string>;

std::vector<std::string> texts(const std::vector<PlanWarning>& warnings) {
  std::vector<std::string> found;
  for (const PlanWarning& w : warnings) found.push_back(w.text());
  return found;
}

TEST_CASE("a group size that does not divide becomes the largest smaller one that does, noted") {
  const OpenModel open;  // hidden 64, inner 48
  const Plan plan = open.plan("{default: {wq: int4, group_size: 64}}");
  CHECK(find(plan, "model.layers.0.self_attn.q_proj").format->desc().group_size == 64);
  CHECK(find(plan, "model.layers.0.self_attn.q_proj").note.empty());
  const PlannedModule& down = find(plan, "model.layers.1.mlp.experts.3.down_proj");
  CHECK(down.format->desc().group_size == 16);
  CHECK(down.note == "groups of 16: 64 does not divide 48 input features");
  CHECK(texts(plan.warnings) ==
        Found{"model.layers.0.mlp.experts.0.down_proj (and 7 more): " + down.note,
              "int4: with group_size: 16 all 32 modules would be of one format"});
}

TEST_CASE("the one group size of all modules is the largest that divides, or a whole row") {
  const OpenModel five({.hidden = 160, .inner = 96});  // 32 divides both, 64 neither
  CHECK(texts(five.plan("{default: {wq: int4}}").warnings).size() == 2);
  const OpenModel odd({.hidden = 64, .inner = 40});
  CHECK_THROWS_WITH_AS(odd.plan("{default: {wq: int4}}"), doctest::Contains("group_size: -1"),
                       Error);
  // all of the same size, though another than was asked for
  const OpenModel same({.hidden = 96, .inner = 96});
  CHECK(texts(same.plan("{default: {wq: int4}}").warnings) ==
        Found{"model.layers.0.self_attn.q_proj (and 31 more): groups of 32: 128 does not divide 96 "
              "input features"});
}

TEST_CASE("a format without the group size takes its own, noted where one was asked for") {
  const OpenModel open;
  CHECK(texts(open.plan("{default: {wq: mxfp6, group_size: 64}, overrides: [{pattern: "
                        "'*.down_proj', skip: true}]}")
                  .warnings) ==
        Found{"model.layers.0.self_attn.q_proj (and 23 more): mxfp6 has group size 32 only, 64 was "
              "asked"});
  CHECK(texts(open.plan("{default: {wq: fp8, group_size: 128}}").warnings) ==
        Found{"model.layers.0.self_attn.q_proj (and 31 more): fp8 has group size -1 (a scale per "
              "row) or 0 (one scale for the matrix) only, 128 was asked"});
  for (const char* wq : {"fp8", "nvfp4"}) {
    CAPTURE(wq);
    CHECK(open.plan(std::string("{default: {wq: ") + wq + "}}").warnings.empty());
    CHECK(open.plan(std::string(
                        "{default: {group_size: 16}, overrides: [{pattern: '*.q_proj', wq: ") +
                    wq + "}]}")
              .warnings.empty());
  }
}

TEST_CASE("strict makes that an error, before any work, and names the size that would do") {
  const OpenModel open;
  CHECK_THROWS_WITH_AS(
      open.plan("{default: {wq: int4, group_size: 64}, strict: true}"),
      "r.yaml:1: model.layers.0.mlp.experts.0.down_proj: group size 64 of int4 does not divide its "
      "48 input features; 16 does (without \"strict\" it is taken)",
      Error);
  CHECK(open.plan("{default: {wq: int4, group_size: 16}, strict: true}").warnings.empty());
}

TEST_CASE("where no group size divides, the module and the sizes tried are named") {
  const OpenModel open({.inner = 40});
  CHECK_THROWS_WITH_AS(
      open.plan("{default: {wq: int4, group_size: 64}}"),
      doctest::Contains("model.layers.0.mlp.experts.0.down_proj: group size 64 of int4 does not "
                        "divide its 40 input features; group_size: -1 (a scale per row) does"),
      Error);
  const std::string rows = "overrides: [{pattern: '*_proj', group_size: -1}, ";
  CHECK_THROWS_WITH_AS(
      open.plan("{" + rows + "{pattern: '*.down_proj', wq: mxfp4}]}"),
      doctest::Contains("no group size of mxfp4 does: give the module another format, or skip it"),
      Error);
  const Plan whole = open.plan("{default: {wq: int4, group_size: -1}}");
  CHECK(find(whole, "model.layers.0.mlp.experts.0.down_proj").format->desc().group_size == -1);
}

TEST_CASE("lm_head and routers stay as they are unless a pattern ends in their name") {
  const OpenModel open;
  const Plan plain = open.plan("{overrides: [{pattern: 'model.layers.0.*', group_size: 32}]}");
  CHECK(!find(plain, "lm_head").format);
  CHECK(!find(plain, "model.layers.0.mlp.gate").format);
  CHECK(find(plain, "model.layers.0.mlp.experts.0.up_proj").format->desc().group_size == 32);
  const Plan named = open.plan(
      "{overrides: [{pattern: lm_head, group_size: 32}, {pattern: '*.mlp.gate', group_size: 64}]}");
  CHECK(find(named, "lm_head").format->desc().group_size == 32);
  CHECK(find(named, "model.layers.1.mlp.gate").format);
  const Plan asked =
      open.plan("{default: {group_size: 16}, overrides: [{pattern: lm_head, skip: false}]}");
  CHECK(find(asked, "lm_head").format);
  CHECK(asked.warnings.empty());
  // by itself, how a module would be solved does not say that it should be
  const Plan aside =
      open.plan("{default: {group_size: 16}, overrides: [{pattern: lm_head, algorithm: rtn}]}");
  CHECK(!find(aside, "lm_head").format);
  CHECK(
      texts(aside.warnings) ==
      Found{"r.yaml:1: the pattern \"lm_head\" has no effect: the modules it matches are skipped"});
}

TEST_CASE("bits per weight count scales, and equal options share one format") {
  const OpenModel open;
  const Plan plan = open.plan("{default: {group_size: 16}}");
  CHECK(plan.bits_per_weight() == 5.0);  // 4 + 16 / 16
  CHECK(plan.quantized_weights() == 2 * (4 * 64 * 64 + 4 * 3 * 48 * 64));
  CHECK(find(plan, "model.layers.0.self_attn.q_proj").format ==
        find(plan, "model.layers.1.mlp.experts.2.up_proj").format);
  CHECK(find(plan, "lm_head").stored_bits() == 0);
}

TEST_CASE("an algorithm given for the run replaces every one of the recipe") {
  const OpenModel open;
  const std::string recipe = "{overrides: [{pattern: '*.q_proj', algorithm: rtn}]}";
  CHECK(open.plan(recipe).needs_calibration());
  CHECK(find(open.plan(recipe), "model.layers.0.self_attn.q_proj").recipe.algorithm == "rtn");
  CHECK(!open.plan(recipe, "rtn").needs_calibration());
  CHECK(find(open.plan(recipe, "gptq"), "model.layers.0.self_attn.q_proj").recipe.algorithm ==
        "gptq");
}

TEST_CASE("a recipe that cannot be is refused before any work") {
  const OpenModel open;
  CHECK_THROWS_WITH_AS(open.plan("overrides:\n- {pattern: '*', wq: itn4}\n"),
                       "r.yaml:2: no plugin offers the format \"itn4\", did you mean \"int4\"?",
                       Error);
  CHECK_THROWS_WITH_AS(open.plan("overrides:\n- {pattern: '*', aq: int9}\n"),
                       doctest::Contains("r.yaml:2: aq: int9: inputs are rounded to one of "),
                       Error);
  CHECK_THROWS_WITH_AS(open.plan("default: {aq: fp16}\n"),
                       doctest::Contains(", or stay as they are with bf16"), Error);
  CHECK_THROWS_WITH_AS(open.plan("{default: {skip: true}}"),
                       "r.yaml: the recipe leaves nothing to quantize", Error);
}

TEST_CASE("what the lint finds is among the plan's warnings, with its line") {
  const OpenModel open;
  CHECK(texts(open.plan("overrides:\n- {pattern: '*.shared_expert.*', group_size: 32}\n"
                        "- {pattern: '*_proj', group_size: 16}\n")
                  .warnings) ==
        std::vector<std::string>{"r.yaml:2: the pattern \"*.shared_expert.*\" matches no module"});
}

}  // namespace
}  // namespace aqhost
