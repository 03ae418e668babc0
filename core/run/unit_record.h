#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/field.h"
#include "base/json.h"
#include "base/work_folder.h"
#include "run/resume.h"

// The records in a work folder's progress/ that say which units of a run are finished, and the
// files that belong to them. `progress` is that folder.

namespace aqhost {

/// The manifest's key for the number of steps, where these are the units and not layers: in the
/// work folder of `allocate`.
inline constexpr const char* kSteps = "steps";

/// The name of a file in its folder, and what shows whether the file is whole.
struct FileMark {
  std::string name, sha256;
  int64_t bytes = 0;
};

Json to_json(const FileMark& mark);
FileMark parse_mark(const Field& json);
/// The mark of a file, which is read for it.
FileMark mark_of(const std::filesystem::path& folder, const std::string& name);
/// Says why a file is not the one that was written; "" if it is.
std::string damage(const std::filesystem::path& folder, const FileMark& mark);

/// Where the record of a unit lies: unit-00007.json.
std::filesystem::path record_path(const std::filesystem::path& progress, int32_t unit);
/// Writes the record of a unit, with its SHA-256, and flushes it. What the record is about must be
/// flushed before.
void write_record(const std::filesystem::path& progress, int32_t unit, Json record);
/// Whether a file of progress/ has the "record" that a run wrote there, as "sha256" in the same
/// file says. Throws an Error that names file and field if one of them is missing.
bool record_is_whole(const Field& file);
/// The content of the file of a record. Throws an Error that names the file if it is damaged.
Json parse_record_file(const std::string& content, const std::string& path);

/// Whether a run should look for finished units in its work folder: it has records, and `resume` is
/// not kNever. Throws an Error if it has none and `resume` is kRequired, or if it has some that
/// belong to another run than that of `manifest` (see run_differences()).
bool may_resume(const WorkFolder& work, const Json& manifest, Resume resume);

}  // namespace aqhost
