#include "run/status.h"

#include <algorithm>

#include "base/error.h"
#include "base/field.h"
#include "base/file.h"
#include "base/work_folder.h"
#include "report/report.h"
#include "run/store.h"

namespace aqhost {
namespace fs = std::filesystem;

RunStatus read_status(const fs::path& work) {
  const fs::path path = work / WorkFolder::kManifest;
  if (!fs::exists(path))
    fail(
        "{}: is no work folder of an unfinished run: there is no {}; a run that is done leaves "
        "none",
        work.string(), WorkFolder::kManifest);
  const Json manifest = read_json(path);
  const Field field(manifest, path.string());
  RunStatus status;
  status.measures = !field[kSteps].is_null();
  status.layers = field[status.measures ? kSteps : "layers"].integer(0);
  if (!status.measures) status.modules = static_cast<int64_t>(field["plan"].members().size());
  status.running = WorkFolder::is_locked(work);
  for (const auto& entry : list_folder(work / "progress")) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("unit-") || !name.ends_with(".json")) continue;
    const Json json = read_json(entry.path());
    const Field file(json, entry.path().string()), record = file["record"];
    if (!record_is_whole(file))
      fail(
          "{}: its content is not what was written (SHA-256); the next run does this layer and "
          "those after it again",
          entry.path().string());
    status.finished_layers++;
    if (status.measures) continue;
    const UnitReport report = parse_unit_report(record["report"]);
    status.finished_modules += static_cast<int64_t>(report.modules.size());
    status.loss += report.loss();
    status.rtn_loss += report.rtn_loss();
    status.seconds = std::max(status.seconds, total(parse_seconds(record["seconds"])));
  }
  status.finished_layers = std::min(status.finished_layers, status.layers);
  return status;
}

}  // namespace aqhost
