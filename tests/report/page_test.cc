#include "report/page.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "sample_report.h"

namespace aqhost {
namespace {

/// Whether each element that begins also ends, in the right order.
bool is_well_formed(const std::string& page) {
  const std::set<std::string> single{"meta"};
  std::vector<std::string> open;
  for (std::size_t at = page.find('<'); at != page.npos; at = page.find('<', at + 1)) {
    if (page[at + 1] == '!') continue;
    const bool ends = page[at + 1] == '/';
    const std::size_t begin = at + (ends ? 2 : 1);
    const std::string name = page.substr(begin, page.find_first_of(" >", begin) - begin);
    if (!ends) {
      if (!single.contains(name)) open.push_back(name);
      continue;
    }
    if (open.empty() || open.back() != name) return false;
    open.pop_back();
  }
  return open.empty();
}

TEST_CASE("the page of a report has all sections, and a table behind each picture") {
  const std::string page = report_page({{"out", sample_report(3, 4)}});
  CHECK(is_well_formed(page));
  for (const char* heading :
       {"Bits", "Loss", "Experts", "Time and memory", "Where it loads", "How to repeat the run"})
    CHECK(contains(page, std::string("<h2>") + heading + "</h2>"));
  CHECK(!contains(page, "Against the original model"));  // nothing was measured
  CHECK(count(page, "<svg role=\"img\"") == count(page, "<desc>"));
  CHECK(count(page, "<svg role=\"img\"") == 6);
  CHECK(count(page, "The numbers as a table") == 5);  // the time by station has its own beside it
  CHECK(!contains(page, "<script"));
  CHECK(!contains(page, "http"));  // it needs no network
  CHECK(!contains(page, " src="));
}

TEST_CASE("one sentence says what was done") {
  const std::string page = report_page({{"out", sample_report(3, 4)}});
  CHECK(contains(page,
                 "aqhost quantized models/tiny, a model of family olmoe with 3 layers of up to 4 "
                 "experts, by GPTQ to int4 g128 (80 %), int8 g128 (20 %), after it had calibrated "
                 "on 8 windows of 64 tokens; 4.00 MB became 1.00 MB."));
}

TEST_CASE(
    "the page says what starved experts cost, why an engine fails, and how to repeat the run") {
  const std::string page = report_page({{"out", sample_report(3, 4)}});
  CHECK(contains(page, "3 of 12 experts are starved"));
  CHECK(contains(page, "They have 25 % of the weights of all experts, and 25 % of their loss."));
  CHECK(contains(page, "<strong>SGLang 0.5</strong> <span class=\"no\">does not load it</span>"));
  CHECK(contains(page, "<li>no int8</li><li>group_size: 32 would do</li>"));
  CHECK(contains(page, "aqhost --model &#39;my model&#39; --save out</pre>"));
  CHECK(contains(page, "<td>prose.txt</td><td>3</td><td>4</td>"));
  CHECK(contains(page, "<td>settings / percdamp</td><td>0.1</td>"));
}

TEST_CASE("the memory of a GPU is beside that of the host, if the run was on one") {
  RunReport report = sample_report(2, 2);
  const std::string on_cpu = report_page({{"out", report}});
  CHECK(contains(on_cpu, "<td>solve</td><td>chooses codes and scales</td>"));
  CHECK(contains(on_cpu, "<td>2.00 MB</td></tr>"));
  CHECK(!contains(on_cpu, "GPU memory"));
  report.device_memory = {{"solve", 3000000}};
  const std::string on_gpu = report_page({{"out", report}});
  CHECK(is_well_formed(on_gpu));
  CHECK(contains(on_gpu, "<th>memory</th><th>GPU memory</th>"));
  CHECK(contains(on_gpu, "<td>2.00 MB</td><td>3.00 MB</td></tr>"));
  CHECK(contains(on_gpu, "<td>1.00 MB</td><td></td></tr>"));  // of "calibrate"
}

TEST_CASE("no text of a model or of a user becomes markup") {
  const std::string evil = "<script>alert('x')</script>\"&";
  RunReport report = sample_report(1, 2);
  report.model_type = report.device = report.setup.model = report.setup.recipe = evil;
  report.setup.recipe_file = evil;
  report.setup.command = {evil};
  report.setup.identity = Json{{evil, evil}};
  report.calibration->files.front().file = evil;
  report.engines.front() = {evil, evil, false, true, true, true, {evil}, {evil}, evil};
  report.units.modules[evil] = report.units.modules.begin()->second;
  report.units.modules.begin()->second.format = evil;
  report.seconds.emplace_back(evil, 1);
  const std::string page = report_page({{evil, report}, {evil, report}});
  CHECK(is_well_formed(page));
  CHECK(!contains(page, "<script"));
  CHECK(!contains(page, "alert('"));
  CHECK(count(page, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;") > 20);
}

TEST_CASE("several exports are beside each other, with what was measured of them") {
  Measurement m;
  m.text = "eval.txt";
  m.window = 64;
  m.perplexity = 20.5;
  m.original_perplexity = 19.75;
  m.kl = 0.0125;
  m.top1 = 0.9;
  m.layers = {{0.02, 0.02}, {0.04, 0.03}};
  const std::string page =
      report_page({{"out-a", sample_report(2, 2), m}, {"out-b", sample_report(2, 2)}});
  CHECK(is_well_formed(page));
  CHECK(contains(page, "<h1>tiny, 2 exports</h1>"));
  CHECK(contains(page, "<th>Perplexity</th><th>KL divergence</th>"));
  CHECK(contains(page, "<td>20.500</td><td>0.0125</td>"));
  CHECK(contains(page, "<h2>Against the original model</h2>"));
  CHECK(contains(page, "layer 1: the layer alone 3.0 %"));
  CHECK(count(page, "<h3>out-b</h3>") == 1 + 7);
}

TEST_CASE("a report without calibration says that no loss is known") {
  RunReport report = sample_report(2, 2);
  report.calibration.reset();
  report.units.experts.clear();
  for (auto& [name, m] : report.units.modules) {
    m.solve.reset();
    m.algorithm = "rtn";
  }
  const std::string page = report_page({{"out", report}});
  CHECK(is_well_formed(page));
  CHECK(contains(page, "No loss is known."));
  CHECK(contains(page, "by rounding to nearest to int4"));
  CHECK(!contains(page, "<h2>Experts</h2>"));
  CHECK(is_well_formed(report_page({{"", RunReport()}})));
}

TEST_CASE("equal reports give equal pages, also if they were stored in between") {
  const RunReport report = sample_report(3, 4);
  const Json stored = parse_json(to_text(to_json(report)), "r.json");
  CHECK(report_page(stored, "r.json") == report_page(stored, "r.json"));
  CHECK(report_page(stored, "r.json") ==
        report_page({{"", parse_run_report(Field(stored, "r.json"))}}));
}

TEST_CASE("the page of 60 layers with 256 experts has less than 2 MB") {
  CHECK(report_page({{"out", sample_report(60, 256)}}).size() < 2'000'000);
}

TEST_CASE("the original model is no result of a comparison, and what is missing is an Error") {
  const Json row{{"folder", "a"},
                 {"perplexity", 20.0},
                 {"text", "t"},
                 {"window", 64},
                 {"layers", Json::array({{{"layer", 0}, {"error", 0.5}, {"own_error", 0.25}}})}};
  Json original = row, compared = row;
  original["kl_divergence"] = nullptr;
  compared["kl_divergence"] = 0.01;
  compared["top1_agreement"] = 0.75;
  compared["perplexity"] = 21.0;
  const Json both = Json::array({original, compared});
  const auto rows = parse_comparison(Field(both, "c.json"));
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].perplexity == 21);
  CHECK(rows[0].original_perplexity == 20);
  CHECK(rows[0].layers.at(0).own == 0.25);
  const Json alone = Json::array({original, original});
  CHECK(parse_comparison(Field(alone, "c.json")).size() == 2);
  Json without = Json::array({original});
  without[0]["perplexity"] = nullptr;
  CHECK_THROWS_WITH_AS(parse_comparison(Field(without, "c.json")),
                       doctest::Contains("c.json: [0]: has no perplexity"), Error);
}

}  // namespace
}  // namespace aqhost
