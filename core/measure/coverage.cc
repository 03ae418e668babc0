#include "measure/coverage.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "run/balance.h"

namespace aqhost {
namespace {

constexpr std::array kMarks{"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};

/// The experts of one layer, in order.
struct LayerCounts {
  std::vector<int64_t> tokens;
  std::vector<bool> starved;
};

/// The mark for experts [begin, end).
std::string mark(const LayerCounts& counts, std::size_t begin, std::size_t end, int64_t maximum) {
  int64_t minimum = maximum;
  for (std::size_t i = begin; i < end; i++) {
    if (counts.starved[i]) return "!";
    minimum = std::min(minimum, counts.tokens[i]);
  }
  const auto steps = static_cast<int64_t>(kMarks.size());
  return kMarks[static_cast<std::size_t>(
      std::min(minimum * steps / std::max<int64_t>(1, maximum), steps - 1))];
}

std::string marks(const LayerCounts& counts, std::size_t columns, int64_t maximum) {
  const std::size_t each = (counts.tokens.size() + columns - 1) / columns;
  std::string line;
  for (std::size_t i = 0; i < counts.tokens.size(); i += each)
    line += mark(counts, i, std::min(i + each, counts.tokens.size()), maximum);
  return line;
}

}  // namespace

std::vector<std::string> coverage_rows(const std::vector<ExpertReport>& experts,
                                       std::size_t width) {
  std::map<int32_t, LayerCounts> layers;
  for (const ExpertReport& e : experts) {
    LayerCounts& counts = layers[e.layer];
    counts.tokens.push_back(e.tokens);
    counts.starved.push_back(e.starved);
  }
  std::vector<std::string> lines;
  for (const auto& [index, counts] : layers) {
    const auto [minimum, maximum] = std::minmax_element(counts.tokens.begin(), counts.tokens.end());
    const std::string begin = fmt::format("layer {:>3}  ", index);
    const std::string end =
        fmt::format("  {} to {} tokens, spread {:.2f}", *minimum, *maximum, spread(counts.tokens));
    const std::size_t used = begin.size() + end.size() + 1;
    lines.push_back(begin + marks(counts, width > used + 8 ? width - used : 8, *maximum) + end);
  }
  return lines;
}

std::string starved_warning(const RunReport& report) {
  int64_t starved = 0, unseen = 0;
  double factor = 1;
  for (const ExpertReport& e : report.units.experts) {
    if (!e.starved) continue;
    starved++;
    if (e.tokens == 0)
      unseen++;
    else
      factor = std::max(factor, static_cast<double>(e.needed) / static_cast<double>(e.tokens));
  }
  if (starved == 0) return {};
  std::string text = fmt::format(
      "{} of {} experts saw fewer tokens than they need and were solved with their layer's inputs "
      "mixed in",
      starved, report.units.experts.size());
  if (starved > unseen)
    text += fmt::format("; about {:.1f} times as much calibration text would be enough for {}",
                        factor, unseen > 0 ? fmt::format("{} of them", starved - unseen) : "all");
  if (report.calibration && starved > unseen) {
    const auto windows = static_cast<double>(report.calibration->windows);
    text += fmt::format(" (--nsamples {:.0f})", std::ceil(factor * windows));
  }
  if (unseen > 0) text += fmt::format("; {} saw none: give text of other kinds too", unseen);
  return text + " (see quantization_report.json)";
}

}  // namespace aqhost
