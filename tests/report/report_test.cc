#include "report/report.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "report/summary.h"
#include "sample_report.h"

namespace aqhost {
namespace {

RunReport read_back(const RunReport& report) {
  const Json json = parse_json(to_text(to_json(report)), "report.json");
  return parse_run_report(Field(json, "report.json"));
}

TEST_CASE("a report that is read back is the report that was written") {
  RunReport report = sample_report(2, 3);
  report.resumed_layers = 1;
  report.peak_device_bytes = 77;
  report.device_memory = {{"solve", 76}, {"write", 3}};
  report.units.refined = {{1, 0.5, 0.25}};
  report.calibration->balance = {32, 0.5, 0.125};
  report.ranks = {{{{"reduce", 10, 0.5}}, 20, 30}, {{}, 21, {}}};
  CHECK(to_json(read_back(report)) == to_json(report));
  CHECK(to_json(read_back(RunReport())) == to_json(RunReport()));
}

TEST_CASE("a loss that is not finite does not make a report unreadable") {
  RunReport report = sample_report(1, 1);
  report.units.modules.begin()->second.solve->rtn_loss = std::numeric_limits<double>::infinity();
  CHECK(read_back(report).units.modules.begin()->second.solve->rtn_loss == 0);
}

TEST_CASE("a layer or an expert that no model has is an Error") {
  const Json json = to_json(sample_report(2, 3));
  Json layer = json, expert = json, refined = json;
  layer["modules"].begin().value()["layer"] = 65'536;
  expert["experts"][0]["layer"] = 2'147'483'647;
  refined["refined"] =
      Json::parse(R"([{"layer": 2147483647, "error_before": 1, "error_after": 1}])");
  for (const Json& wrong : {layer, expert, refined})
    CHECK_THROWS_WITH_AS(parse_run_report(Field(wrong, "report.json")), doctest::Contains("layer"),
                         Error);
}

TEST_CASE("a summary has room for every layer that was refined") {
  RunReport report = sample_report(2, 3);
  report.units.refined = {{5, 0.5, 0.25}};
  CHECK(summarize(report).layers == 6);
}

TEST_CASE("an Error names the file and the field, or says that the report is too old") {
  Json json = to_json(sample_report(1, 1));
  json["totals"]["bytes"] = "many";
  CHECK_THROWS_WITH_AS(parse_run_report(Field(json, "x.json")),
                       "x.json: totals.bytes: expected an integer, found \"many\"", Error);
  json.erase("run");
  CHECK_THROWS_WITH_AS(parse_run_report(Field(json, "x.json")),
                       doctest::Contains("x.json: has no \"run\"; an earlier version"), Error);
}

TEST_CASE("the part of a module is its name without what all layers have in common") {
  CHECK(name_without_numbers("model.layers.12.mlp.experts.3.w2") ==
        "model.layers.*.mlp.experts.*.w2");
  CHECK(part_of("model.layers.12.mlp.experts.3.w2") == "mlp.experts.*.w2");
  CHECK(part_of("model.layers.0.self_attn.q2_proj") == "self_attn.q2_proj");
  CHECK(part_of("lm_head") == "lm_head");
}

TEST_CASE("a summary adds up parts, layers, and the cost of starved experts") {
  const ReportSummary s = summarize(sample_report(2, 3));
  CHECK(s.layers == 2);
  CHECK(s.experts == 3);
  REQUIRE(s.parts.size() == 2);
  CHECK(s.parts[0].first == "self_attn.q_proj");
  CHECK(s.parts[1].second.modules == 6);
  CHECK(s.all.loss == 4 * 1 + 4 * 2);
  CHECK(s.all.relative_loss() == doctest::Approx(12.0 / 32));
  CHECK(s.by_layer[1].loss == 8);
  CHECK(s.starved.modules == 2);
  CHECK(s.other_experts.modules == 4);
  CHECK(s.parts[0].second.main_format() == "int8 g128");
  CHECK(s.all.bits_per_weight() == doctest::Approx((2 * 8.125 + 6 * 4.125) / 8));
}

TEST_CASE("the worst modules are those with the largest losses") {
  const RunReport report = sample_report(3, 2);
  const auto worst = worst_modules(report.units, 4);
  REQUIRE(worst.size() == 4);
  CHECK(worst[0].second->layer == 2);
  CHECK(worst[2].second->layer == 2);
  CHECK(worst[3].second->layer == 1);
  CHECK(worst_modules(report.units, 100).size() == 9);
}

}  // namespace
}  // namespace aqhost
