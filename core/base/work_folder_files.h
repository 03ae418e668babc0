#pragma once

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

// Which files of a work folder (see WorkFolder) belong to the run. All other files belong to the
// user, and are neither removed nor replaced. `work` is the path of the work folder.

namespace aqhost {

/// The folders in a work folder. kReplacedFolder contains those files of the target that the result
/// replaces, while a commit moves the files.
inline constexpr const char *kExportFolder = "export", *kProgressFolder = "progress",
                            *kReplacedFolder = "replaced";
inline constexpr const char* kUnfinishedManifest = "manifest.json.part";  // see write_file()
inline constexpr const char* kCommitRecord = "commit.json";               // see merge_result()

/// Whether the folder has a manifest that says that aqhost made the folder.
bool is_work_folder(const std::filesystem::path& work);

/// The files of export/ that the manifest lists; nullopt if it has no list.
std::optional<std::set<std::string>> listed_files(const std::filesystem::path& work);

/// The files that belong to the run, relative to `work`; the manifest is the last.
std::vector<std::string> own_files(const std::filesystem::path& work);

/// Removes the files of the run, and the folders that are empty then. Throws an Error if a folder
/// cannot be read or a file cannot be removed.
void remove_own_files(const std::filesystem::path& work);

/// Removes the work folder of a run that has ended. What cannot be removed stays, and so does the
/// work folder if it contains files of the user.
void remove_work_folder(const std::filesystem::path& work);

/// All files of a folder and of the folders below it, relative to it and sorted.
std::vector<std::string> files_in(const std::filesystem::path& folder);

/// Whether a file with that name lies in `folder` itself, and not elsewhere by way of ".." or a
/// link.
bool lies_in(const std::filesystem::path& folder, const std::filesystem::path& name);

/// Removes the folders between a file, which is gone, and `folder` that contained nothing else.
void remove_empty_parents(const std::filesystem::path& folder, const std::filesystem::path& file);

}  // namespace aqhost
