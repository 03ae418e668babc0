#include "measure/coverage.h"

#include "run/balance.h"
#include "torch_doctest.h"

namespace aqhost {
namespace {

ExpertReport expert(int layer, int index, int64_t tokens, bool starved = false) {
  return {layer, index, tokens, static_cast<double>(tokens) / 2, starved, 64};
}

TEST_CASE("spread is the standard deviation divided by the mean") {
  CHECK(spread({5, 5, 5}) == 0);
  CHECK(spread({0, 20}) == doctest::Approx(1));
  CHECK(spread({1, 3}) == doctest::Approx(0.5));
  CHECK(spread({0, 0}) == 0);
  CHECK(spread({}) == 0);
}

TEST_CASE("coverage has one row per layer and one mark per expert") {
  const std::vector<ExpertReport> experts{expert(0, 0, 800),     expert(0, 1, 100),
                                          expert(0, 2, 400),     expert(3, 0, 90),
                                          expert(3, 1, 3, true), expert(3, 2, 45)};
  const auto rows = coverage_rows(experts, 80);
  REQUIRE(rows.size() == 2);
  CHECK(rows[0] == "layer   0  █▂▅  100 to 800 tokens, spread 0.66");
  CHECK(rows[1] == "layer   3  █!▅  3 to 90 tokens, spread 0.77");
}

TEST_CASE("if there are more experts than columns, a mark shows the minimum of several experts") {
  std::vector<ExpertReport> experts;
  for (int e = 0; e < 64; e++) experts.push_back(expert(0, e, e == 9 ? 1 : 64));
  const auto rows = coverage_rows(experts, 80);
  REQUIRE(rows.size() == 1);
  CHECK(rows[0] == "layer   0  ████▁███████████████████████████  1 to 64 tokens, spread 0.12");
}

TEST_CASE(
    "the warning says how much more text starved experts need, and how many receive no tokens") {
  RunReport report;
  report.calibration.emplace().windows = 10;
  report.units.experts = {expert(0, 0, 500), expert(0, 1, 16, true), expert(0, 2, 32, true)};
  CHECK(starved_warning(report) ==
        "2 of 3 experts saw fewer tokens than they need and were solved with their layer's inputs "
        "mixed in; about 4.0 times as much calibration text would be enough for all "
        "(--nsamples 40) (see quantization_report.json)");
  report.units.experts[1] = expert(0, 1, 0, true);
  CHECK(starved_warning(report) ==
        "2 of 3 experts saw fewer tokens than they need and were solved with their layer's inputs "
        "mixed in; about 2.0 times as much calibration text would be enough for 1 of them "
        "(--nsamples 20); 1 saw none: give text of other kinds too (see quantization_report.json)");
  report.units.experts = {expert(0, 0, 500)};
  CHECK(starved_warning(report).empty());
}

}  // namespace
}  // namespace aqhost
