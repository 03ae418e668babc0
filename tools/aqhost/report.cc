#include <fmt/format.h>

#include <filesystem>

#include "base/counted.h"
#include "base/error.h"
#include "base/file.h"
#include "command.h"
#include "report/page.h"
#include "run/exporter.h"

namespace aqhost {
namespace {

namespace fs = std::filesystem;

struct ReportOptions : CommandOptions {
  std::vector<std::string> folders;
  std::string compare, out;
};

void add_options(OptionTable& table, ReportOptions& options) {
  table.list("folder", "DIR", options.folders,
             "Show the report of the export in this folder. The option's name may be left out.");
  table.take_bare_arguments("folder");
  table.text("compare", "FILE", options.compare,
             "Also show what aqhost compare has measured of these exports; FILE has what it "
             "printed with --text and --json.");
  table.text("out", "FILE", options.out,
             "Write this file. Without the option, the page of one export becomes report.html in "
             "its folder.");
  table.flag("json", options.json, "Print the result as JSON.");
}

bool is_same_folder(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return a == b || fs::equivalent(a, b, ignored);
}

/// The exports with what `file`, if there is one, says about them.
void add_measurements(std::vector<ReportedExport>& exports, const std::string& file) {
  if (file.empty()) return;
  const Json json = read_json(file);
  const std::vector<Measurement> measured = parse_comparison(Field(json, file));
  for (ReportedExport& e : exports) {
    for (const Measurement& m : measured)
      if (is_same_folder(m.folder, e.label)) e.measured = m;
    if (!e.measured) fail("{}: says nothing about {}", file, e.label);
  }
}

/// Throws an Error if the file is there and is no page of this command.
void check_replaceable(const fs::path& file) {
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(file, ignored))) return;
  if (!is_report_page(file))
    fail("{}: exists and is no report of aqhost, so it is not replaced; choose another name",
         file.string());
}

void run(const ReportOptions& options) {
  if (options.folders.empty()) throw UsageError("no folder is given: aqhost report EXPORT ...");
  if (options.folders.size() > 1 && options.out.empty())
    throw UsageError("--out is missing; a page of several exports belongs to none of them");
  std::vector<ReportedExport> exports;
  for (const std::string& folder : options.folders) {
    const fs::path file = fs::path(folder) / kReportFile;
    std::error_code ignored;
    if (!fs::exists(file, ignored))
      fail("{}: is no export of aqhost (it has no {})", folder, kReportFile);
    const Json report = read_json(file);
    exports.push_back({folder, parse_run_report(Field(report, file.string()))});
  }
  add_measurements(exports, options.compare);
  const fs::path out =
      options.out.empty() ? fs::path(options.folders.front()) / kPageFile : fs::path(options.out);
  check_replaceable(out);
  const std::string page = report_page(exports);
  write_file(out, page);
  const auto bytes = static_cast<int64_t>(page.size());
  if (options.json)
    fmt::print("{}\n", to_text(Json{{"file", out.string()}, {"bytes", bytes}}));
  else
    fmt::print("written to {}, {}\n", out.string(), format_bytes(bytes));
}

}  // namespace

const Command kReport{
    "report", "shows the report of an export, or of several, as a page",
    "report EXPORT\nreport A B ... --out PAGE.html [--compare FILE]",
    "The page is one HTML file with pictures, which needs no network: bits by layer, the loss of "
    "each module in relation to rounding to nearest, the calibration tokens of each expert, time "
    "and memory, which engines load the export, and how to repeat the run. A run writes such a "
    "page, report.html, into its export.\n\n"
    "With --compare, the page also has the perplexity, the KL divergence and the errors of the "
    "hidden states: aqhost compare A B --against ORIGINAL --text FILE --json > measured.json, then "
    "aqhost report A B --compare measured.json --out page.html.",
    prepare<ReportOptions, add_options, run>};

}  // namespace aqhost
