#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

namespace aqhost {

/// The folder in which a run prepares what becomes `target` in commit(). It outlives a run that
/// fails after keep(), so that the next run to the same target finds what was finished.
///
/// Where there is no target yet, the work folder lies beside it (`target.work`), and its result is
/// renamed to the target. Where the target is a folder already (an empty one, a mounted volume, an
/// earlier export, the current folder), the work folder lies inside (`target/.work`), and commit()
/// moves the result's files up: the target itself is never renamed or deleted, nor any file of the
/// user's in it or in the work folder. A lock keeps two runs out of one target. One thread.
///
/// In the work folder: `export`, which becomes the target, and `progress`, what the run notes for a
/// later one, are folders of the run alone; and `manifest.json`, which says whose the folder is
/// (see run/store.h).
class WorkFolder {
 public:
  static constexpr const char* kManifest = "manifest.json";

  /// Makes the work folder, or opens the one that an earlier run has left.
  /// `replaced`: files, relative to `target`, that an earlier run wrote and commit() removes.
  /// Error, before anything is written: the target is no folder or a link to nothing; it has
  /// content although `replaced` is empty; it cannot be made or written; another run writes to it;
  /// the work folder has content but no manifest, so that it is not ours.
  explicit WorkFolder(const std::filesystem::path& target, std::set<std::string> replaced = {});
  /// Removes the work folder, unless keep() was called or an earlier run's work is in it.
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  /// Whether there is no such folder or it is empty (but for a work folder).
  static bool is_free(const std::filesystem::path& target);
  /// The work folder of a target: the one that is there, or the one that a run would make.
  static std::filesystem::path of(const std::filesystem::path& target);

  /// Whether a run has that work folder locked.
  static bool is_locked(const std::filesystem::path& work);

  const std::filesystem::path& path() const { return work_; }
  std::filesystem::path result() const { return work_ / "export"; }
  std::filesystem::path progress() const { return work_ / "progress"; }

  /// Removes what an earlier run has left; files of other origin stay. As if it had been made anew.
  void clear();
  /// The files of the result so far, relative to it, sorted.
  std::vector<std::string> files() const;
  /// Error if the target has a file under the name of one of the result's that is not to be
  /// replaced.
  void check() const;
  /// From now on the folder stays where it is if the run fails.
  void keep() { keep_ = true; }
  /// The end of a failed run's message: that `what` is kept in result(), and `advice`; or that it
  /// is gone, where somebody has deleted it meanwhile.
  std::string fate(const std::string& what, const std::string& advice) const;
  /// Puts the result in place and removes the work folder. On failure the target is as it was
  /// before, the work folder is kept, and the Error names both.
  void commit();

 private:
  void make();
  void lock();
  void check_ours() const;
  void make_folders() const;
  void merge() const;

  std::string name_;  // of the target, as it was given
  std::set<std::string> replaced_;
  std::filesystem::path target_, work_;
  std::vector<std::filesystem::path> parents_;  // that were made for the target, outermost first
  bool inside_ = false, keep_ = false;
  int lock_ = -1;
};

}  // namespace aqhost
