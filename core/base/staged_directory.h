#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

namespace aqhost {

/// A folder that a run fills and that becomes `target` in commit(), so that a run that fails or is
/// interrupted leaves nothing half-written. Where there is no target yet, the folder lies beside it
/// (`target.part-1`) and is renamed. Where the target is a folder already (an empty one, a mounted
/// volume, an earlier export, the current folder), it lies inside (`target/.part-1`), and commit()
/// moves its files up: the target itself is never renamed or deleted, nor any file of the user's in
/// it. A lock keeps two runs from writing to one target. One thread.
class StagedDirectory {
 public:
  struct Leftover {
    std::filesystem::path path;
    int64_t bytes;
  };

  /// `replaced`: files, relative to `target`, that an earlier run wrote and commit() removes.
  /// Error, before anything is written, if the target is no folder or a link to nothing, if it has
  /// content although `replaced` is empty, if it cannot be made or written, or if another run
  /// writes to it.
  explicit StagedDirectory(const std::filesystem::path& target,
                           std::set<std::string> replaced = {});
  ~StagedDirectory();
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  /// Whether there is no such folder or it is empty (but for what killed runs left).
  static bool is_free(const std::filesystem::path& target);

  const std::filesystem::path& path() const { return staging_; }
  /// What earlier runs to this target left when they were killed.
  const std::vector<Leftover>& leftovers() const { return leftovers_; }
  /// The files staged so far, relative to path(), sorted.
  std::vector<std::string> files() const;

  /// Error if the target has a file under the name of a staged one that is not to be replaced.
  void check() const;
  /// From now on the folder stays where it is if the run fails: its content took long to compute.
  void keep() { keep_ = true; }
  /// The end of a failed run's message: that `what` is kept in path(), and `advice`; or that path()
  /// is gone, where somebody has deleted it meanwhile.
  std::string fate(const std::string& what, const std::string& advice) const;
  /// On failure the target is as it was before, and the folder is kept; Error names both.
  void commit();

 private:
  void make();
  void look_for_others();
  void discard();
  void merge() const;

  std::string name_;  // of the target, as it was given
  std::set<std::string> replaced_;
  std::filesystem::path target_, staging_;
  std::vector<std::filesystem::path> parents_;  // that were made for the target, outermost first
  std::vector<Leftover> leftovers_;
  bool inside_ = false, keep_ = false;
  int lock_ = -1;
};

}  // namespace aqhost
