#include "base/error.h"
#include "plan/plan.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

std::string with(const std::string& defaults, const std::string& pattern,
                 const std::string& settings) {
  return "{default: {" + defaults + "}, overrides: [{pattern: '" + pattern + "', " + settings +
         "}]}";
}

TEST_CASE("settings that modules with one input must share are refused where they differ") {
  const OpenModel open;
  for (const char* pattern : {"*.k_proj", "*.v_proj", "*.q_proj", "*.up_proj", "*.gate_proj"}) {
    CAPTURE(pattern);
    CHECK_THROWS_WITH_AS(
        open.plan(with("wq: int8, group_size: -1", pattern, "aq: int8, group_size: -1")),
        doctest::Contains("both have the same input"), Error);
  }
  for (const char* pattern : {"*.up_proj", "*.experts.1.gate_proj"}) {
    CAPTURE(pattern);
    CHECK_THROWS_WITH_AS(open.plan(with("group_size: 16", pattern, "routing_power: 0")),
                         doctest::Contains("routing_power"), Error);
  }
  CHECK_THROWS_WITH_AS(
      open.plan(with("group_size: 16", "*.layers.1.*.2.up_proj", "routing_power: 0.5")),
      "r.yaml:1: model.layers.1.mlp.experts.2.gate_proj has routing_power: 1, but "
      "model.layers.1.mlp.experts.2.up_proj has routing_power: 0.5; both have the same input, and "
      "it gives one Hessian: give them the same",
      Error);
}

TEST_CASE("they may differ between modules with inputs of their own, or of which one stays dense") {
  const OpenModel open;
  for (const char* pattern : {"*.down_proj", "*.experts.1.*", "*.self_attn.*", "*.k_proj"})
    CHECK_NOTHROW(open.plan(with("group_size: 16", pattern, "routing_power: 0")));
  for (const char* pattern : {"*.o_proj", "*.down_proj", "*.layers.1.*"})
    CHECK_NOTHROW(open.plan(with("wq: int8, group_size: -1", pattern, "aq: int8, group_size: -1")));
  CHECK_NOTHROW(open.plan(with("wq: int8, aq: int8, group_size: -1", "*.k_proj", "skip: true")));
}

TEST_CASE("refine and rounded activations are refused together, in whichever modules they are") {
  const OpenModel open;
  const std::string refined = "group_size: 16, refine: {steps: 2}";
  const std::string rounded = "wq: int8, aq: int8, group_size: -1, refine: {steps: 0}";
  for (const char* pattern : {"*.self_attn.*", "*.down_proj", "*.layers.1.*"})
    CHECK_THROWS_WITH_AS(open.plan(with(refined, pattern, rounded)),
                         doctest::Contains("refine, which does not go with rounded activations"),
                         Error);
  const std::string both = "{default: {wq: int8, group_size: -1, refine: {steps: 2},\n aq: int8}}";
  CHECK_THROWS_WITH_AS(
      open.plan(both),
      "r.yaml:2: model.layers.0.self_attn.q_proj has aq: int8, and it has refine, which does not "
      "go with rounded activations in any module; use aq: bf16 or refine: {steps: 0} for all "
      "modules",
      Error);
  // rounding to nearest is not refined
  CHECK_NOTHROW(open.plan(with(refined, "*.self_attn.*", rounded), "rtn"));
  CHECK_NOTHROW(open.plan(both, "rtn"));
}

}  // namespace
}  // namespace aqhost
