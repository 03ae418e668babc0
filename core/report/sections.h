#pragma once

#include <optional>
#include <span>
#include <string>

#include "report/comparison.h"
#include "report/html.h"
#include "report/report.h"
#include "report/summary.h"

namespace aqhost {

/// One export on a page.
struct ShownExport {
  std::string label;  // its folder, which tells it from others on the same page
  RunReport report;
  ReportSummary summary;
  std::optional<Measurement> measured;
};

/// A section of the page. What does not apply to an export is left out; `applies` says whether
/// anything is left.
struct PageSection {
  const char* id;
  const char* heading;
  bool (*applies)(const ShownExport& shown);
  void (*write)(Html& html, const ShownExport& shown);
};
/// All sections, in the order in which they are shown.
std::span<const PageSection> page_sections();

/// "47.3 %".
std::string percent(double share);
/// The part of a name behind its last slash.
std::string last_name(const std::string& path);

// One section each, in order.
void write_bits(Html& html, const ShownExport& shown);
void write_losses(Html& html, const ShownExport& shown);
void write_experts(Html& html, const ShownExport& shown);
void write_quality(Html& html, const ShownExport& shown);
void write_costs(Html& html, const ShownExport& shown);
void write_engines(Html& html, const ShownExport& shown);
void write_origin(Html& html, const ShownExport& shown);

}  // namespace aqhost
