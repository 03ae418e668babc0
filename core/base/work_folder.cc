#include "base/work_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/work_folder_commit.h"
#include "base/work_folder_files.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr const char* kWork = ".work";

/// The target without links, "." and "..". A part that does not exist yet is appended unchanged.
fs::path resolve(fs::path target) {
  if (target.filename().empty() && target.has_relative_path()) target = target.parent_path();
  std::error_code error, ignored;
  if (fs::is_symlink(target, ignored) && !fs::exists(target, ignored))
    fail("{}: is a link to {}, which does not exist; make that folder or remove the link",
         target.string(), fs::read_symlink(target, ignored).string());
  const fs::path absolute = fs::absolute(target, error);
  if (error) fail("{}: {}", target.string(), error.message());
  fs::path resolved = fs::weakly_canonical(absolute, error);  // a relative path could stay relative
  if (error) resolved = absolute.lexically_normal();
  if (resolved.filename().empty() && resolved.has_relative_path())
    resolved = resolved.parent_path();
  if (fs::exists(resolved, ignored) && !fs::is_directory(resolved, ignored))
    fail("{}: exists and is no folder; choose another name", target.string());
  return resolved;
}

fs::path work_of(const fs::path& target, bool inside) {
  return inside ? target / kWork : fs::path(target.string() + kWork);
}

bool is_content(const fs::path& entry) {
  return entry.filename() != kWork && entry.filename() != "lost+found";  // in the root of a volume
}

/// Removes the work folder of a run that was killed after it had put its result in place.
void remove_finished(const fs::path& work) {
  std::error_code ignored;
  const fs::path result = work / kExportFolder;
  if (!is_work_folder(work) || WorkFolder::is_locked(work)) return;
  if (fs::exists(result, ignored) && !files_in(result).empty()) return;
  remove_work_folder(work);
}

/// Where the work folder of a resolved target lies: inside it if it is a folder, unless an earlier
/// run began beside it when it was not there yet.
bool lies_inside(const fs::path& target) {
  std::error_code ignored;
  if (!fs::is_directory(target, ignored)) return false;
  return !(fs::is_empty(target, ignored) && is_work_folder(work_of(target, false)));
}

/// Whether an open folder is the one that has this path.
bool is_at(int folder, const fs::path& path) {
  struct stat open {
  }, named{};
  return ::fstat(folder, &open) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

/// What those of `files` take that exist. They are relative to `folder`.
template <typename Names>
int64_t bytes_on_disk(const fs::path& folder, const Names& files) {
  constexpr int64_t kBlock = 512;  // the unit of st_blocks
  int64_t bytes = 0;
  struct stat status {};
  for (const std::string& file : files)
    if (::lstat((folder / file).c_str(), &status) == 0) bytes += kBlock * status.st_blocks;
  return bytes;
}

/// Whether one of the run's folders has nothing in it but marks of a run of several processes that
/// was killed before it wrote its manifest.
bool has_no_work(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) return false;
  const auto entries = list_folder(folder);
  return std::all_of(entries.begin(), entries.end(), [](const auto& entry) {
    return entry.path().filename().string().starts_with(WorkFolder::kSharedMark);
  });
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(fs::symlink_status(path, ignored));
}

}  // namespace

WorkFolder::WorkFolder(const fs::path& target, std::set<std::string> replaced)
    : name_(target.string()), replaced_(std::move(replaced)), target_(resolve(target)) {
  inside_ = lies_inside(target_);
  if (replaced_.empty() && !is_free(target_)) {
    for (const bool inside : {false, true}) remove_finished(work_of(target_, inside));
    fail(
        "{}: already exists and is not empty; choose another folder, or pass --overwrite if an "
        "earlier run wrote it",
        name_);
  }
  open();
}

WorkFolder::WorkFolder(OfFile /*tag*/, const fs::path& file)
    : name_(file.string()), target_(fs::weakly_canonical(fs::absolute(file))) {
  open();
}

void WorkFolder::open() {
  work_ = work_of(target_, inside_);
  try {
    make();
    lock();
    check_ours();
    make_folders();
    keep_ = is_work_folder(work_);
  } catch (const Error&) {
    if (lock_ >= 0) ::close(lock_);
    ::rmdir(work_.c_str());  // only if this run created it
    for (auto it = parents_.rbegin(); it != parents_.rend(); ++it) ::rmdir(it->c_str());
    throw;
  }
}

WorkFolder::WorkFolder(OfOtherProcess /*tag*/, const fs::path& target)
    : name_(target.string()), target_(resolve(target)), inside_(lies_inside(target_)), keep_(true) {
  work_ = work_of(target_, inside_);
  lock_ = ::open(work_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (lock_ < 0)
    fail(
        "{}: this process does not see the work folder that rank 0 has created ({}); the processes "
        "of a run need one folder on a file system that they share",
        work_.string(), std::strerror(errno));
}

WorkFolder::~WorkFolder() {
  if (!keep_ && is_at(lock_, work_)) {
    remove_work_folder(work_);
    for (auto it = parents_.rbegin(); it != parents_.rend(); ++it) ::rmdir(it->c_str());
  }
  if (lock_ >= 0) ::close(lock_);
}

bool WorkFolder::is_free(const fs::path& target) {
  if (!fs::is_directory(target)) return !fs::exists(target);
  const auto entries = list_folder(target);
  return std::none_of(entries.begin(), entries.end(),
                      [](const auto& entry) { return is_content(entry.path()); });
}

fs::path WorkFolder::of(const fs::path& target) {
  const fs::path resolved = resolve(target);
  return work_of(resolved, lies_inside(resolved));
}

void WorkFolder::undo_commit(const fs::path& target) {
  const fs::path resolved = resolve(target);
  const fs::path work = work_of(resolved, true);
  std::error_code ignored;
  if (!fs::exists(work / kCommitRecord, ignored) || !is_work_folder(work) || is_locked(work))
    return;
  undo_merge(work, resolved);
}

fs::path WorkFolder::result() const { return work_ / kExportFolder; }

fs::path WorkFolder::progress() const { return work_ / kProgressFolder; }

bool WorkFolder::is_locked(const fs::path& work) {
  const int fd = ::open(work.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool locked = ::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(fd);
  return locked;
}

void WorkFolder::make() {
  std::error_code error, ignored;
  fs::path parent = target_.parent_path();
  for (; !inside_ && !fs::exists(parent, ignored) && parent != parent.parent_path();
       parent = parent.parent_path())
    parents_.insert(parents_.begin(), parent);
  if (!inside_) fs::create_directories(target_.parent_path(), error);
  if (const auto there = fs::symlink_status(work_, ignored);
      fs::exists(there) && !fs::is_directory(there))
    fail("{}: is no folder, and the run needs this name for its work; move it away",
         work_.string());
  if (!error) fs::create_directory(work_, error);
  if (error)
    fail("{}: {}: {}", name_, inside_ ? "cannot be written" : "cannot be made", error.message());
}

void WorkFolder::lock() {
  lock_ = ::open(work_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (lock_ < 0) fail("{}: {}", work_.string(), std::strerror(errno));
  const bool in_use = ::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (in_use || !is_at(lock_, work_))  // or the other run has just ended and removed it
    fail("{}: another run of aqhost is writing to it (in {}); choose another folder", name_,
         work_.string());
}

/// Throws an Error if the folder has content but no manifest. A run that was killed at its very
/// start leaves folders without work, or the beginning of a manifest.
void WorkFolder::check_ours() const {
  std::error_code ignored;
  for (const fs::path& folder : {result(), progress()})
    if (fs::is_symlink(fs::symlink_status(folder, ignored)))
      fail("{}: is a link, and the run needs a folder there; move it away", folder.string());
  if (is_work_folder(work_)) return;
  for (const auto& entry : list_folder(work_)) {
    const bool empty_own =
        (entry.path() == result() || entry.path() == progress()) && has_no_work(entry.path());
    if (!empty_own && entry.path().filename() != kUnfinishedManifest)
      fail(
          "{}: is no work folder of aqhost (it has no {} that says so); move it away or choose "
          "another target",
          work_.string(), kManifest);
  }
}

void WorkFolder::make_folders() const {
  std::error_code error;
  for (const fs::path& folder : {result(), progress()}) {
    fs::create_directory(folder, error);
    if (error) fail("{}: cannot be made: {}", folder.string(), error.message());
  }
}

void WorkFolder::check_in_place() const {
  fs::path changed;
  for (const fs::path& folder : {progress(), result()})
    if (!is_folder(folder)) changed = folder;
  if (!is_at(lock_, work_)) changed = work_;
  if (changed.empty()) return;
  fail(
      "{}: this folder was removed, moved or replaced while the run was writing to it; put it back "
      "to go on, or begin anew without it, by the same command, and leave it alone until the run "
      "has ended",
      changed.string());
}

void WorkFolder::clear() {
  remove_own_files(work_);
  make_folders();
  keep_ = false;
}

int64_t WorkFolder::clearable_bytes() const { return bytes_on_disk(work_, own_files(work_)); }

int64_t WorkFolder::replaced_bytes() const { return bytes_on_disk(target_, replaced_); }

void WorkFolder::write_manifest(Json manifest, const std::vector<std::string>& files) const {
  for (const std::string& name : listed_files(work_).value_or(std::set<std::string>()))
    if (std::find(files.begin(), files.end(), name) == files.end() && lies_in(result(), name))
      ::unlink((result() / name).c_str());
  manifest[kFiles] = files;
  write_file(work_ / kManifest, to_text(manifest, 2) + "\n");
  flush_folder(work_);
  flush_folder(work_.parent_path());
}

bool WorkFolder::may_place(const std::string& file) const {
  std::error_code ignored;
  return !inside_ || replaced_.contains(file) ||
         !fs::exists(fs::symlink_status(target_ / file, ignored));
}

void WorkFolder::check_replaceable(const std::vector<std::string>& files) const {
  for (const std::string& file : files)
    if (!may_place(file))
      fail(
          "{}/{}: was not written by an earlier run, and this one writes a file of that name; move "
          "it away or choose another folder",
          name_, file);
}

std::string WorkFolder::set_aside_others(const std::vector<std::string>& files) const {
  const std::set<std::string> listed(files.begin(), files.end());
  std::vector<std::string> others = files_in(result());
  std::erase_if(others, [&](const std::string& file) { return listed.contains(file); });
  if (others.empty()) return {};
  const fs::path aside = set_aside(work_, others);
  return fmt::format(
      "{}: {}{} not written by the run and {} not part of the export, but now in {}",
      result().string(), others.front(),
      others.size() == 1 ? " was" : fmt::format(" and {} more were", others.size() - 1),
      others.size() == 1 ? "is" : "are", aside.string());
}

void WorkFolder::commit() {
  check_in_place();
  keep();
  try {
    check_replaceable(files_in(result()));
    if (inside_) {
      merge_result(work_, target_, replaced_);
    } else if (::rename(result().c_str(), target_.c_str()) != 0) {
      // rename() replaces at most an empty folder
      const int error = errno;
      const bool appeared = error == ENOTEMPTY || error == EEXIST || error == ENOTDIR;
      fail("{}: {}", name_,
           appeared ? "appeared during the run and is not replaced"
                    : fmt::format("cannot be put in place: {}", std::strerror(error)));
    }
  } catch (const Error& e) {
    fail("{}. The finished result is kept in {}; move it to where you want it", e.what(),
         result().string());
  }
  flush_folder(inside_ ? target_ : target_.parent_path());
  remove_work_folder(work_);
}

}  // namespace aqhost
