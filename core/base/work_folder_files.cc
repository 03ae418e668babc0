#include "base/work_folder_files.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "base/work_folder.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// The manifest of a work folder, if it says that aqhost made the folder.
std::optional<Json> manifest_of(const fs::path& work) {
  const fs::path manifest = work / WorkFolder::kManifest;
  std::error_code ignored;
  if (!fs::is_regular_file(fs::symlink_status(manifest, ignored))) return {};
  try {
    Json json = read_json(manifest);
    if (json.is_object() && json.value("generator", Json()) == "aqhost") return json;
  } catch (const Error&) {  // somebody else's file may be no JSON
  }
  return {};
}

}  // namespace

bool is_work_folder(const fs::path& work) { return manifest_of(work).has_value(); }

std::optional<std::set<std::string>> listed_files(const fs::path& work) {
  const std::optional<Json> manifest = manifest_of(work);
  if (!manifest || !manifest->contains(WorkFolder::kFiles)) return {};
  std::set<std::string> files;
  for (const Json& name : (*manifest)[WorkFolder::kFiles])
    if (name.is_string()) files.insert(name.get<std::string>());
  return files;
}

std::vector<std::string> own_files(const fs::path& work) {
  const auto listed = listed_files(work);  // without a list, all of export/ is the run's
  const auto is_export = [&listed](const std::string& name) {
    constexpr std::string_view kPart = ".part";  // the end of the name while a file is written
    return !listed || listed->contains(name) ||
           (name.ends_with(kPart) && listed->contains(name.substr(0, name.size() - kPart.size())));
  };
  const auto is_progress = [](const std::string& name) {
    return name.starts_with("unit-") || name.starts_with("states-");
  };
  std::vector<std::string> own;
  const auto add = [&](const std::string& folder, const auto& is_own) {
    std::error_code ignored;
    if (!fs::is_directory(fs::symlink_status(work / folder, ignored))) return;
    for (const std::string& name : files_in(work / folder))
      if (is_own(name)) own.push_back(fmt::format("{}/{}", folder, name));
  };
  add(kExportFolder, is_export);
  add(kProgressFolder, is_progress);
  add(kReplacedFolder, [](const std::string& /*name*/) { return true; });
  for (const char* name : {kUnfinishedManifest, kCommitRecord, WorkFolder::kManifest})
    own.emplace_back(name);
  return own;
}

void remove_own_files(const fs::path& work) {
  for (const std::string& file : own_files(work)) {
    if (::unlink((work / file).c_str()) != 0 && errno != ENOENT)
      fail("{}: cannot be removed: {}", (work / file).string(), std::strerror(errno));
    remove_empty_parents(work, file);
  }
  for (const char* folder : {kExportFolder, kProgressFolder, kReplacedFolder})
    ::rmdir((work / folder).c_str());
}

void remove_work_folder(const fs::path& work) {
  try {
    remove_own_files(work);
  } catch (const Error&) {  // the result is not affected
  }
  ::rmdir(work.c_str());
}

std::vector<std::string> files_in(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error))
    if (!fs::is_directory(it->symlink_status(error)))
      files.push_back(it->path().lexically_relative(folder).string());
  if (error) fail("{}: {}", folder.string(), error.message());
  std::sort(files.begin(), files.end());
  return files;
}

bool lies_in(const fs::path& folder, const fs::path& name) {
  std::error_code ignored;
  if (name.empty() || name.is_absolute() || name != name.lexically_normal()) return false;
  if (*name.begin() == "..") return false;
  for (fs::path parent = name.parent_path(); !parent.empty(); parent = parent.parent_path())
    if (!fs::is_directory(fs::symlink_status(folder / parent, ignored))) return false;
  const fs::file_status status = fs::symlink_status(folder / name, ignored);
  return fs::exists(status) && !fs::is_directory(status);
}

void remove_empty_parents(const fs::path& folder, const fs::path& file) {
  for (fs::path p = file.parent_path(); !p.empty(); p = p.parent_path())
    ::rmdir((folder / p).c_str());
}

}  // namespace aqhost
