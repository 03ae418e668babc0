#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "base/json.h"

namespace aqhost {

/// The folder in which a run prepares the files that commit() turns into `target`. After keep(),
/// the folder outlives a run that fails, so that the next run to the same target finds the finished
/// part.
///
/// If the target does not exist, the work folder lies beside it (`target.work`), and commit()
/// renames the result to the target. If the target is a folder already (an empty one, a mounted
/// volume, an earlier export, the current folder), the work folder lies inside it (`target/.work`),
/// and commit() moves the files of the result up. So the target itself is never renamed or deleted,
/// and neither are the user's files in the target or in the work folder. A lock prevents two runs
/// from using one target. Used by one thread only, except check_in_place().
///
/// The work folder contains three things. `export` becomes the target. `progress` holds what the
/// run records for a later run, in files whose names begin with unit- or states-. `manifest.json`
/// says which run the work folder belongs to (see run/store.h), and lists the files that the run
/// writes to `export`. All other files belong to the user.
class WorkFolder {
 public:
  static constexpr const char* kManifest = "manifest.json";
  /// The beginning of the name of the file in progress/ by which several processes find out that
  /// they see the same folder. It is there before the manifest.
  static constexpr const char* kSharedMark = "states-shared-";
  /// The key of the manifest for the list of files.
  static constexpr const char* kFiles = "files";

  /// Creates the work folder, or opens the one that an earlier run has left. `replaced` are the
  /// files, relative to `target`, that an earlier run wrote and that commit() removes. Throws an
  /// Error, before anything is written, if the target is not a folder or is a link to nothing; if
  /// it has content although `replaced` is empty; if it cannot be created or written; if another
  /// run writes to it; or if the work folder has content but no manifest, so that it does not
  /// belong to aqhost.
  explicit WorkFolder(const std::filesystem::path& target, std::set<std::string> replaced = {});
  /// Opens the work folder of a target that another process of the same run has created and locked.
  /// Such an object gives paths and checks that they are in place, and does nothing else. Throws an
  /// Error if this process does not see the folder.
  struct OfOtherProcess {};
  WorkFolder(OfOtherProcess, const std::filesystem::path& target);
  /// The work folder (`FILE.work`) of a run that writes one file, which may exist already. The run
  /// writes the file itself, and clear() ends the work; commit() is not for such a folder.
  struct OfFile {};
  WorkFolder(OfFile, const std::filesystem::path& file);
  /// Removes the work folder, unless keep() was called or the folder contains the work of an
  /// earlier run.
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  /// Whether the target does not exist or is empty (apart from a work folder).
  static bool is_free(const std::filesystem::path& target);
  /// The work folder of a target: the existing one, or the one that a run would create.
  static std::filesystem::path of(const std::filesystem::path& target);

  /// Takes back what a run that was killed in commit() has moved into an existing target and out of
  /// it, so that the target is as it was before and the result is whole again. Does nothing if
  /// there is no such run. To be called before the target is looked at.
  static void undo_commit(const std::filesystem::path& target);
  /// Whether a run holds the lock of this work folder.
  static bool is_locked(const std::filesystem::path& work);

  const std::filesystem::path& path() const { return work_; }
  const std::filesystem::path& target() const { return target_; }
  /// Leaves a file of the target in its place that this run would have replaced.
  void spare(const std::string& file) { replaced_.erase(file); }
  std::filesystem::path result() const;    // export/
  std::filesystem::path progress() const;  // progress/

  /// Throws an Error, which says what to do, if somebody has removed, moved or replaced path(),
  /// result() or progress() since this object opened them. To be called before anything is written,
  /// so that nothing is written to a folder of another owner.
  void check_in_place() const;

  /// Removes what an earlier run has left, as if the folder were new; the user's files stay.
  void clear();
  /// The bytes on the disk that clear() frees.
  int64_t clearable_bytes() const;
  /// The bytes on the disk of the files of the earlier run, which commit() frees.
  int64_t replaced_bytes() const;
  /// Writes the manifest, with the list of the `files` that the run writes to result(). Removes
  /// from result() what an earlier manifest listed and this one does not list.
  void write_manifest(Json manifest, const std::vector<std::string>& files) const;
  /// Throws an Error if the target has a file with the name of one of `files`, relative to it, that
  /// no earlier run wrote and that therefore must not be replaced.
  void check_replaceable(const std::vector<std::string>& files) const;
  /// Whether commit() may put a file of this name, relative to the target, there: the target has
  /// none, or it is one of those that an earlier run wrote.
  bool may_place(const std::string& file) const;
  /// From now on, the folder stays where it is if the run fails.
  void keep() { keep_ = true; }
  /// Moves all files of result() that are not among `files` to a new folder beside it, so that
  /// commit() does not take them along. Returns a sentence that says so, or "" if there are none.
  std::string set_aside_others(const std::vector<std::string>& files) const;
  /// Puts the result in place and removes the work folder. On failure, the target is as it was
  /// before, the work folder is kept, and the Error names both.
  void commit();

 private:
  void open();
  void make();
  void lock();
  void check_ours() const;
  void make_folders() const;

  std::string name_;  // of the target, as the caller gave it
  std::set<std::string> replaced_;
  std::filesystem::path target_, work_;
  std::vector<std::filesystem::path> parents_;  // folders created for the target, outermost first
  bool inside_ = false, keep_ = false;
  int lock_ = -1;
};

}  // namespace aqhost
