#include "report/chart.h"

#include <doctest/doctest.h>

#include "sample_report.h"

namespace aqhost {
namespace {

std::string plain(double value) { return fmt::format("{:g}", value); }

TEST_CASE("the end of an axis is the next round number") {
  CHECK(round_up(0) == 1);
  CHECK(round_up(1) == 1);
  CHECK(round_up(1.1) == 2);
  CHECK(round_up(24) == 40);
  CHECK(round_up(0.031) == doctest::Approx(0.04));
  CHECK(round_up(7) == 8);
  CHECK(round_up(9) == 10);
}

TEST_CASE("a picture says in words what it shows, and has its numbers as a table") {
  Html html;
  draw(html, {"Loss <by> layer.", "What one sees.", {{"layer", "loss"}, {{"0", "5"}}, 1}},
       BarChart{{"layer", 2}, {{"c0", "loss", {5, 10}}}, false, 0, plain});
  const std::string text = html.str();
  CHECK(contains(text, "<svg role=\"img\" aria-label=\"Loss &lt;by&gt; layer.\""));
  CHECK(contains(text, "<title>Loss &lt;by&gt; layer.</title><desc>What one sees.</desc>"));
  CHECK(contains(text, "<details><summary>The numbers as a table</summary>"));
  CHECK(contains(text, "<tr><td>0</td><td>5</td></tr>"));
}

TEST_CASE("a bar is as high as its value, and the bars of a stack stand on each other") {
  Html html;
  draw(html, {"t", "d", {}},
       BarChart{{"layer", 1}, {{"c0", "a", {25}}, {"c1", "b", {50}}}, true, 100, plain});
  CHECK(contains(html.str(),
                 "<rect x=\"0.10\" y=\"75.00\" width=\"0.80\" height=\"25.00\">"
                 "<title>layer 0: a 25</title>"));
  CHECK(contains(html.str(), "<rect x=\"0.10\" y=\"25.00\" width=\"0.80\" height=\"50.00\">"));
  CHECK(contains(html.str(), "<li><i class=\"c1\"></i>b</li>"));
  CHECK(html.str().find("<details>") == std::string::npos);  // there are no numbers
}

TEST_CASE("a bar beyond the end of its axis ends there, and a negative value is no bar") {
  Html html;
  draw(html, {"t", "d", {}}, BarChart{{"layer", 2}, {{"c0", "a", {250, -1}}}, false, 100, plain});
  CHECK(contains(html.str(), "y=\"0.00\" width=\"0.80\" height=\"100.00\""));
  CHECK(html.str().find("layer 1: a") == std::string::npos);
}

TEST_CASE("neighbours of one colour are one piece, and marked cells have a cross") {
  Html html;
  CellChart chart;
  chart.rows = {"0", "7"};
  chart.columns = {"expert", 3};
  chart.colors = {"s1", "s1", "s4", "", "s1", "s4"};
  chart.marked = {false, true, false, false, false, false};
  chart.mark_text = "starved";
  draw(html, {"t", "d", {}}, chart);
  CHECK(contains(html.str(), "<path class=\"s1\" d=\"M0 0h2v1h-2zM1 1h1v1h-1z\">"));
  CHECK(contains(html.str(), "<path class=\"s4\" d=\"M2 0h1v1h-1zM2 1h1v1h-1z\">"));
  CHECK(contains(html.str(), "<path class=\"cross\" d=\"M1 0l1 1m-1 0l1-1\">"));
  CHECK(contains(html.str(), "<li><i class=\"mark\"></i>starved</li>"));
}

TEST_CASE("an axis has at most eight labels") {
  for (const int64_t size : {1, 8, 9, 61, 256, 1000}) {
    Html html;
    CellChart chart;
    chart.rows = {""};
    chart.columns = {"x", size};
    chart.colors.resize(static_cast<std::size_t>(size));
    draw(html, {"t", "d", {}}, chart);
    const std::string text = html.str();
    std::size_t labels = 0;
    for (std::size_t at = text.find("class=\"x"); (at = text.find("<span style", at)) != text.npos;
         at++)
      labels++;
    CHECK(labels >= 1);
    CHECK(labels <= 8);
  }
}

}  // namespace
}  // namespace aqhost
