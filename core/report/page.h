#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "report/comparison.h"
#include "report/report.h"

namespace aqhost {

/// The name of the page in the folder of an export.
inline constexpr const char* kPageFile = "report.html";

/// Whether a file is a page that report_page() has made. False if there is none.
bool is_report_page(const std::filesystem::path& file);

/// An export of which a page shows the report, and what was measured of it, if anything.
struct ReportedExport {
  std::string label;  // its folder; shown if there are several
  RunReport report;
  std::optional<Measurement> measured{};
};

/// The report as one document of HTML, which needs nothing else: no script, and no other file. With
/// several exports, it shows them beside each other. Equal arguments give equal bytes. The size is
/// about 0.5 MB for an export with 60 layers of 256 experts.
std::string report_page(const std::vector<ReportedExport>& exports);

/// The page of one export, given the content of its quantization_report.json. An Error names `file`
/// and the field.
std::string report_page(const Json& report, const std::string& file);

}  // namespace aqhost
