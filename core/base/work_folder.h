#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

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
/// from using one target. Used by one thread only.
///
/// The work folder contains three things. `export` becomes the target. `progress` holds what the
/// run records for a later run. These two folders belong to the run alone. `manifest.json` says
/// which run the work folder belongs to (see run/store.h).
class WorkFolder {
 public:
  static constexpr const char* kManifest = "manifest.json";

  /// Creates the work folder, or opens the one that an earlier run has left. `replaced` are the
  /// files, relative to `target`, that an earlier run wrote and that commit() removes. Throws an
  /// Error, before anything is written, if the target is not a folder or is a link to nothing; if
  /// it has content although `replaced` is empty; if it cannot be created or written; if another
  /// run writes to it; or if the work folder has content but no manifest, so that it does not
  /// belong to aqhost.
  explicit WorkFolder(const std::filesystem::path& target, std::set<std::string> replaced = {});
  /// Removes the work folder, unless keep() was called or the folder contains the work of an
  /// earlier run.
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  /// Whether the target does not exist or is empty (apart from a work folder).
  static bool is_free(const std::filesystem::path& target);
  /// The work folder of a target: the existing one, or the one that a run would create.
  static std::filesystem::path of(const std::filesystem::path& target);

  /// Whether a run holds the lock of this work folder.
  /// Takes back what a run that was killed in commit() has moved into an existing target and out of
  /// it, so that the target is as it was before and the result is whole again. Does nothing if
  /// there is no such run. To be called before the target is looked at.
  static void undo_commit(const std::filesystem::path& target);
  static bool is_locked(const std::filesystem::path& work);

  const std::filesystem::path& path() const { return work_; }
  std::filesystem::path result() const { return work_ / "export"; }
  std::filesystem::path progress() const { return work_ / "progress"; }

  /// Removes what an earlier run has left, as if the folder were new; files of other origin stay.
  void clear();
  /// The files that the result has so far, relative to it and sorted.
  std::vector<std::string> files() const;
  /// Throws an Error if a file of the result has the same name as a file of the target that must
  /// not be replaced.
  void check() const;
  /// From now on, the folder stays where it is if the run fails.
  void keep() { keep_ = true; }
  /// The end of the message of a failed run. It says that `what` is kept in result(), followed by
  /// `advice`; or that it is gone, if somebody has deleted it meanwhile.
  std::string fate(const std::string& what, const std::string& advice) const;
  /// Puts the result in place and removes the work folder. On failure, the target is as it was
  /// before, the work folder is kept, and the Error names both.
  void commit();

 private:
  void make();
  void lock();
  void check_ours() const;
  void make_folders() const;
  void merge() const;

  std::string name_;  // of the target, as the caller gave it
  std::set<std::string> replaced_;
  std::filesystem::path target_, work_;
  std::vector<std::filesystem::path> parents_;  // folders created for the target, outermost first
  bool inside_ = false, keep_ = false;
  int lock_ = -1;
};

}  // namespace aqhost
