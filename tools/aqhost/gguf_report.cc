#include "gguf_report.h"

#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <span>

#include "base/counted.h"
#include "command.h"

namespace aqhost {

std::string summary_text(const GgufSummary& summary) {
  std::vector<std::string> types;
  for (const auto& [name, count] : summary.types)
    types.push_back(fmt::format("{} in {}", count, name));
  return fmt::format("GGUF for llama.cpp's {}: {} tensors ({}), {}", summary.architecture,
                     summary.tensors, fmt::join(types, ", "), format_bytes(summary.bytes));
}

std::string files_text(const GgufSummary& summary) {
  const std::size_t more = summary.files.size() - 1;
  return summary.files.front().string() + (more > 0 ? fmt::format(" and {} more", more) : "");
}

Json to_json(const GgufSummary& summary) {
  Json files = Json::array();
  for (const auto& file : summary.files) files.push_back(file.string());
  const GgufRounding& r = summary.rounding;
  return {{"architecture", summary.architecture},
          {"tensors", summary.tensors},
          {"types", summary.types},
          {"bytes", summary.bytes},
          {"files", files},
          {"left_out", summary.left_out},
          {"scales", r.scales},
          {"rounded_scales", r.rounded_scales},
          {"worst_scale_change", r.worst_scale},
          {"minima", r.minima},
          {"rounded_minima", r.rounded_minima},
          {"worst_minimum_change_in_steps", r.worst_minimum},
          {"worst_frequency_change", summary.rounded_rope},
          {"notes", summary.notes}};
}

void warn_of_changes(const GgufSummary& summary, const std::string& directory) {
  constexpr std::size_t kMaximumNames = 3;
  if (const auto& names = summary.left_out; !names.empty()) {
    const auto shown = std::span(names).first(std::min(names.size(), kMaximumNames));
    spdlog::warn("{}: {} tensor{} that llama.cpp does not have left out: {}{}", directory,
                 names.size(), names.size() == 1 ? "" : "s", fmt::join(shown, ", "),
                 names.size() > kMaximumNames ? ", ..." : "");
  }
  if (const std::string text = rounding_text(summary.rounding); !text.empty())
    spdlog::warn("{}: {}", directory, text);
  if (summary.rounded_rope > 0)
    spdlog::warn(
        "{}: config.json has YaRN with truncate: false, and llama.cpp always rounds the bounds of "
        "YaRN; this changes frequencies of the rotation by up to {:.2g} %",
        directory, 100 * summary.rounded_rope);
  for (const std::string& note : summary.notes) spdlog::warn("{}: {}", directory, note);
}

}  // namespace aqhost
