#include "run/status.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/error.h"
#include "base/progress.h"
#include "base/work_folder.h"
#include "command.h"

namespace aqhost {
namespace {

namespace fs = std::filesystem;

struct StatusOptions : CommandOptions {
  std::string work;
};

void add_options(OptionTable& table, StatusOptions& options) {
  table.required_text("work", "DIR", options.work,
                      "Read this work folder (OUT.work), or that of the run that saves to this "
                      "folder (OUT). The option's name may be left out.");
  table.take_bare_arguments("work");
  table.flag("json", options.json, "Print the result as JSON.");
}

/// The folder itself if it is a work folder, or else the work folder of the run that saves to it.
/// If there is neither, the folder itself, so that the message names what the user gave.
fs::path work_folder(const fs::path& given) {
  const auto is_work = [](const fs::path& folder) {
    return fs::exists(folder / WorkFolder::kManifest);
  };
  const fs::path of_run = WorkFolder::of(given);
  return !is_work(given) && is_work(of_run) ? of_run : given;
}

void print(const fs::path& folder, const RunStatus& s) {
  const std::string modules =
      s.measures ? " of allocate"
                 : fmt::format(", {} of {} modules", s.finished_modules, s.modules);
  fmt::print("{}: {} of {} {} are finished{}{}\n", folder.string(), s.finished_layers, s.layers,
             s.measures ? "steps" : "layers", modules, s.running ? "; a run is using it" : "");
  if (s.rtn_loss > 0)
    fmt::print("loss so far {:.4g}, {:.1f} % of rounding to nearest\n", s.loss,
               100 * s.loss / s.rtn_loss);
  if (s.finished_layers > 0 && s.layers > s.finished_layers) {
    const double per_layer = s.seconds / static_cast<double>(s.finished_layers);
    fmt::print("{} so far, about {} left\n", format_duration(s.seconds),
               format_duration(per_layer * static_cast<double>(s.layers - s.finished_layers)));
  }
  if (!s.running)
    fmt::print(
        "give the command of the run again to continue, or add --resume never to begin anew\n");
}

void run(const StatusOptions& options) {
  const fs::path folder = work_folder(options.work);
  const RunStatus s = read_status(folder);
  if (!options.json) return print(folder, s);
  fmt::print("{}\n", to_text(Json{{"folder", folder.string()},
                                  {"layers", s.layers},
                                  {"finished_layers", s.finished_layers},
                                  {"modules", s.modules},
                                  {"finished_modules", s.finished_modules},
                                  {"loss", s.loss},
                                  {"rtn_loss", s.rtn_loss},
                                  {"seconds", s.seconds},
                                  {"running", s.running}}));
}

}  // namespace

const Command kStatus{
    "status", "says what an unfinished run has done and what is left", "status OUT.work [--json]",
    "A run keeps its finished layers in a work folder until all layers are finished. The work "
    "folder is OUT.work beside the folder OUT that the run saves to, or OUT/.work if OUT existed "
    "before the run. This command reads only what the run has recorded; the next run checks "
    "whether the files are whole.",
    prepare<StatusOptions, add_options, run>};

}  // namespace aqhost
