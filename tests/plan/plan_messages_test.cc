#include <vector>

#include "base/error.h"
#include "export/autogptq.h"
#include "plan/plan.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

struct Fault {
  std::string keys;    // of the default, one per line from line 2 on
  int line;            // that is to blame
  std::string option;  // that the message names
  const Container* container = &compressed_tensors();
};

/// The message with which the plan of such a recipe is refused.
std::string refusal(const OpenModel& open, const Fault& fault) {
  try {
    (void)open.plan("default:\n" + fault.keys, "", *fault.container);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST_CASE("what a format refuses is told with the recipe's line, the module and the option") {
  const OpenModel open({.inner = 40});
  const std::vector<Fault> faults{
      {"  wq: int4\n  group_size: 0\n", 3, "group_size is 0, expected one of"},
      {"  group_size: 0\n  wq: int4\n", 2, "group_size is 0, expected one of"},
      {"  group_size: 0\n", 2, "group_size is 0, expected one of"},
      {"  wq: int4\n  group_size: 7\n", 3, "group size 7 of int4 does not divide"},
      {"  wq: int4\n  group_size: 16\n  element: e2m3\n", 4, "\"element\" is not known"},
      {"  wq: mxfp6\n  element: e9m9\n", 3, "element is \"e9m9\", expected one of"},
      {"  wq: mxfp4\n  symmetric: false\n", 3, "\"symmetric\" is not known"},
      {"  scale_rule: foo\n  wq: int4\n", 2, "scale_rule is \"foo\", expected one of"},
      {"  wq: int4\n  scale_dtype: x\n", 3, "scale_dtype is \"x\", expected one of"},
      // of several faults the line is that of the one which is told
      {"  wq: int4\n  scale_dtype: x\n  symmetric: true\n  scale_rule: y\n", 5, "scale_rule is"},
      {"  wq: mxfp4\n  group_size: 32\n", 3, "no group size of mxfp4 does"},
      {"  wq: int8\n  group_size: -1\n  aq: mxfp4\n", 4, "aq: groups of 32 of mxfp4"},
      {"  wq: int8\n  group_size: -1\n  aq: int8\n", 4, "no rounded activations", &autogptq()},
      {"  group_size: 16\n  wq: int6\n", 3, "not int6", &autogptq()},
  };
  for (const Fault& fault : faults) {
    CAPTURE(fault.keys);
    const std::string message = refusal(open, fault);
    CAPTURE(message);
    CHECK(message.starts_with("r.yaml:" + std::to_string(fault.line) + ": model.layers.0."));
    CHECK(message.find(fault.option) != message.npos);
    CHECK(message.find('\n') == message.npos);
  }
}

TEST_CASE("the line is that of the override which sets the option for the module") {
  const OpenModel open;
  CHECK_THROWS_WITH_AS(open.plan("default: {wq: int4, group_size: 16}\n"
                                 "overrides:\n"
                                 "- pattern: '*.o_proj'\n"
                                 "  symmetric: false\n"
                                 "- {pattern: '*.1.self_attn.*', scale_rule: best}\n"),
                       doctest::Contains("r.yaml:5: model.layers.1.self_attn.q_proj: plugin "),
                       Error);
}

TEST_CASE("an option that is no UTF-8 is refused by the format as any other") {
  CHECK_THROWS_WITH_AS(registry().create_format("int4", {{"scale_rule", "caf\xe9"}}),
                       doctest::Contains("scale_rule is \"caf\xef\xbf\xbd\""), Error);
}

}  // namespace
}  // namespace aqhost
