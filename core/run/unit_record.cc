#include "run/unit_record.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "base/sha256.h"
#include "run/run_difference.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

void refuse_other_run(const WorkFolder& work, const Json& manifest) {
  std::vector<std::string> found =
      run_differences(read_json(work.path() / WorkFolder::kManifest), manifest);
  if (found.empty()) return;
  fail(
      "{}: holds the unfinished work of another run: {}. Run it as before to go on, save to "
      "another place, or pass --resume never to begin anew",
      work.path().string(), listed(std::move(found)));
}

}  // namespace

Json to_json(const FileMark& mark) {
  return {{"file", mark.name}, {"bytes", mark.bytes}, {"sha256", mark.sha256}};
}

FileMark parse_mark(const Field& json) {
  return {json["file"].text(), json["sha256"].text(), json["bytes"].integer(0)};
}

FileMark mark_of(const fs::path& folder, const std::string& name) {
  const InputFile file(folder / name);
  return {name, sha256_of(file, file.size()), file.size()};
}

std::string damage(const fs::path& folder, const FileMark& mark) {
  const fs::path path = folder / mark.name;
  std::error_code ignored;
  if (fs::is_symlink(fs::symlink_status(path, ignored)))
    return fmt::format("{}: is a link, not the file that was written", path.string());
  try {
    const InputFile file(path);
    if (file.size() != mark.bytes)
      return fmt::format("{}: has {} bytes, {} were written", path.string(), file.size(),
                         mark.bytes);
    if (sha256_of(file, file.size()) == mark.sha256) return {};
    return fmt::format("{}: its content is not what was written (SHA-256)", path.string());
  } catch (const Error& e) {
    return e.what();
  }
}

fs::path record_path(const fs::path& progress, int32_t unit) {
  return progress / fmt::format("unit-{:05}.json", unit);
}

void write_record(const fs::path& progress, int32_t unit, Json record) {
  const std::string sha256 = sha256_of_text(to_text(record));
  write_file(record_path(progress, unit),
             to_text(Json{{"sha256", sha256}, {"record", std::move(record)}}) + "\n");
  flush_folder(progress);
}

bool record_is_whole(const Field& file) {
  return file["sha256"].text() == sha256_of_text(to_text(file["record"].json()));
}

Json parse_record_file(const std::string& content, const std::string& path) {
  Json file = parse_json(content, path);
  if (!record_is_whole(Field(file, path)))
    fail("{}: its content is not what was written (SHA-256)", path);
  return file;
}

bool may_resume(const WorkFolder& work, const Json& manifest, Resume resume) {
  const std::vector<fs::directory_entry> notes = list_folder(work.progress());
  const bool any = std::any_of(notes.begin(), notes.end(), [](const fs::directory_entry& note) {
    const std::string name = note.path().filename().string();
    return name.starts_with("unit-") && name.ends_with(".json");  // a kill may leave a .part
  });
  if (!any && resume == Resume::kRequired)
    fail("{}: there is nothing to go on with (--resume required): no finished layer",
         work.path().string());
  if (!any || resume == Resume::kNever) return false;
  refuse_other_run(work, manifest);
  return true;
}

}  // namespace aqhost
