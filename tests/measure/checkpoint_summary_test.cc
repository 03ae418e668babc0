#include "measure/checkpoint_summary.h"

#include "base/error.h"
#include "base/file.h"
#include "export/decoded_checkpoint.h"
#include "small_model.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

CheckpointSummary summary_of(const std::filesystem::path& folder) {
  const auto source = open_source(folder, registry());
  return summarize(*source, *registry().create_model(*source, "auto"));
}

/// The sum of the losses in a report of the modules whose name contains `part`.
double loss_of(const Json& report, const std::string& part) {
  double sum = 0;
  for (const auto& [name, module] : report["modules"].items())
    if (name.find(part) != std::string::npos) sum += module["loss"].get<double>();
  return sum;
}

TEST_CASE(
    "an export's summary has its bits, its size, and the shares of the report's loss in order") {
  const OpenModel open;
  const Json report = open.quantize(open.plan("{default: {wq: int4, group_size: 16}}"), "out");
  const CheckpointSummary summary = summary_of(open / "out");
  CHECK(summary.bits_per_weight ==
        doctest::Approx(5));  // 4 bits, and a bfloat16 scale for 16 weights
  CHECK(summary.bytes == report["totals"]["bytes"]);
  const double all = loss_of(report, "");
  REQUIRE(summary.layers.size() == 2);
  CHECK(summary.layers[0].share >= summary.layers[1].share);
  for (const LossShare& s : summary.layers)
    CHECK(s.share == doctest::Approx(loss_of(report, fmt::format("layers.{}.", s.layer)) / all));
  REQUIRE(summary.experts.size() == 2 * 4);
  for (std::size_t i = 0; i < 8; i++) {
    const LossShare& s = summary.experts[i];
    const std::string name = fmt::format("layers.{}.mlp.experts.{}.", s.layer, s.expert);
    CHECK(s.share == doctest::Approx(loss_of(report, name) / all));
    if (i > 0) CHECK(summary.experts[i - 1].share >= s.share);
  }
}

TEST_CASE("an unquantized checkpoint's summary has only bits and size") {
  const OpenModel open;
  const CheckpointSummary summary = summary_of(open / "model");
  CHECK(summary.bits_per_weight == 16);
  CHECK(summary.layers.empty());
  CHECK(summary.experts.empty());
}

TEST_CASE("an invalid report is refused, and the message names its file and module") {
  const OpenModel open;
  open.quantize(open.plan("{default: {group_size: 16}}", "rtn"), "out");
  write_file(open / "out" / "quantization_report.json", R"({"modules": []})");
  CHECK_THROWS_WITH_AS(
      summary_of(open / "out"),
      doctest::Contains("modules: expected the modules of a report of aqhost, found array"), Error);
  write_file(open / "out" / "quantization_report.json",
             R"({"modules": {"model.layers.0.self_attn.q_proj": {"loss": "much"}}})");
  CHECK_THROWS_WITH_AS(summary_of(open / "out"),
                       doctest::Contains("modules.model.layers.0.self_attn.q_proj.loss: expected a "
                                         "number, found \"much\""),
                       Error);
  write_file(open / "out" / "quantization_report.json",
             R"({"modules": {"model.layers.0.self_attn.q_proj": 3}})");
  CHECK_THROWS_WITH_AS(
      summary_of(open / "out"),
      doctest::Contains("modules.model.layers.0.self_attn.q_proj: expected an object"), Error);
}

}  // namespace
}  // namespace aqhost
