#include "base/work_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "base/error.h"
#include "base/field.h"
#include "base/file.h"
#include "base/json.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// No reader takes a folder without this file for a checkpoint. Therefore it is removed first and
/// added last.
constexpr const char* kLast = "config.json";
constexpr const char* kWork = ".work";
/// The names in the work folder that belong to the run.
constexpr const char* kUnfinishedManifest = "manifest.json.part";  // see write_file()
constexpr const char* kCommit = "commit.json";                     // what merge() moves
constexpr std::array kOwn{"export", "progress",           "replaced", kUnfinishedManifest,
                          kCommit,  WorkFolder::kManifest};

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

/// Whether the manifest of a work folder says that aqhost made it.
bool is_ours(const fs::path& work) {
  const fs::path manifest = work / WorkFolder::kManifest;
  std::error_code ignored;
  if (!fs::is_regular_file(fs::symlink_status(manifest, ignored))) return false;
  try {
    const Json json = read_json(manifest);
    return json.is_object() && json.value("generator", Json()) == "aqhost";
  } catch (const Error&) {
    return false;
  }
}

/// Removes what is ours in a work folder.
void remove_own(const fs::path& work) {
  std::error_code ignored;
  for (const char* name : kOwn) fs::remove_all(work / name, ignored);
}

std::vector<std::string> files_in(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error))
    if (!it->is_directory(error)) files.push_back(it->path().lexically_relative(folder).string());
  if (error) fail("{}: {}", folder.string(), error.message());
  std::sort(files.begin(), files.end());
  return files;
}

/// Removes the work folder of a run that was killed after it had put its result in place.
void remove_finished(const fs::path& work) {
  std::error_code ignored;
  const fs::path result = work / "export";
  if (!is_ours(work) || WorkFolder::is_locked(work)) return;
  if (fs::exists(result, ignored) && !files_in(result).empty()) return;
  remove_own(work);
  ::rmdir(work.c_str());
}

/// Where the work folder of a resolved target lies: inside it if it is a folder, unless an earlier
/// run began beside it when it was not there yet.
bool lies_inside(const fs::path& target) {
  std::error_code ignored;
  if (!fs::is_directory(target, ignored)) return false;
  return !(fs::is_empty(target, ignored) && is_ours(work_of(target, false)));
}

/// Whether a file with that name lies in `folder` itself, and not elsewhere by way of ".." or a
/// link.
bool lies_in(const fs::path& folder, const fs::path& name) {
  std::error_code ignored;
  if (name.empty() || name.is_absolute() || name != name.lexically_normal()) return false;
  if (*name.begin() == "..") return false;
  for (fs::path parent = name.parent_path(); !parent.empty(); parent = parent.parent_path())
    if (!fs::is_directory(fs::symlink_status(folder / parent, ignored))) return false;
  const fs::file_status status = fs::symlink_status(folder / name, ignored);
  return fs::exists(status) && !fs::is_directory(status);
}

/// Moves files one after another, and moves them back unless finish() is called.
class Moves {
 public:
  Moves() = default;
  ~Moves() {
    for (auto it = done_.rbegin(); it != done_.rend(); ++it)
      ::rename(it->second.c_str(), it->first.c_str());
    std::error_code ignored;
    for (auto it = made_.rbegin(); it != made_.rend(); ++it) fs::remove(*it, ignored);
  }
  Moves(const Moves&) = delete;
  Moves& operator=(const Moves&) = delete;

  void make_folder(const fs::path& folder) {
    if (folder.empty() || fs::is_directory(folder)) return;
    make_folder(folder.parent_path());
    std::error_code error;
    fs::create_directory(folder, error);
    if (error) fail("{}: cannot be made: {}", folder.string(), error.message());
    made_.push_back(folder);
  }

  void move(const fs::path& from, const fs::path& to) {
    make_folder(to.parent_path());
    if (::rename(from.c_str(), to.c_str()) != 0)
      fail("{}: cannot be moved to {}: {}", from.string(), to.string(), std::strerror(errno));
    done_.emplace_back(from, to);
  }

  void finish() {
    done_.clear();
    made_.clear();
  }

 private:
  std::vector<std::pair<fs::path, fs::path>> done_;
  std::vector<fs::path> made_;
};

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
  work_ = work_of(target_, inside_);
  try {
    make();
    lock();
    check_ours();
    make_folders();
    keep_ = is_ours(work_);
  } catch (const Error&) {
    if (lock_ >= 0) ::close(lock_);
    ::rmdir(work_.c_str());  // only if this run created it
    for (auto it = parents_.rbegin(); it != parents_.rend(); ++it) ::rmdir(it->c_str());
    throw;
  }
}

WorkFolder::~WorkFolder() {
  if (!keep_) {
    remove_own(work_);
    ::rmdir(work_.c_str());
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
  if (!fs::exists(work / kCommit, ignored) || !is_ours(work) || is_locked(work)) return;
  const Json json = read_json(work / kCommit);
  const Field moved(json, (work / kCommit).string());
  const auto move_back = [&](const fs::path& from, const fs::path& to) {
    if (!fs::exists(fs::symlink_status(from, ignored)) ||
        fs::exists(fs::symlink_status(to, ignored)))
      return;
    fs::create_directories(to.parent_path(), ignored);
    if (::rename(from.c_str(), to.c_str()) != 0)
      fail("{}: cannot be moved back to {}: {}", from.string(), to.string(), std::strerror(errno));
  };
  for (const Field& file : moved["after"].items())
    if (lies_in(resolved, file.text()))
      move_back(resolved / file.text(), work / "export" / file.text());
  for (const Field& file : moved["before"].items())
    if (lies_in(work / "replaced", file.text()))
      move_back(work / "replaced" / file.text(), resolved / file.text());
  fs::remove(work / kCommit, ignored);
}

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
  struct stat ours {};  // some file systems have no locks
  struct stat there {};
  if (in_use || ::fstat(lock_, &ours) != 0 || ::stat(work_.c_str(), &there) != 0 ||
      ours.st_ino != there.st_ino)  // the other run has just ended and removed it
    fail("{}: another run of aqhost is writing to it (in {}); choose another folder", name_,
         work_.string());
}

/// Error if the folder has content but no manifest. A run that was killed at its very start leaves
/// empty folders, or the beginning of a manifest.
void WorkFolder::check_ours() const {
  std::error_code ignored;
  for (const fs::path& folder : {result(), progress()})
    if (fs::is_symlink(fs::symlink_status(folder, ignored)))
      fail("{}: is a link, and the run needs a folder there; move it away", folder.string());
  if (is_ours(work_)) return;
  for (const auto& entry : list_folder(work_)) {
    const bool empty_own = (entry.path() == result() || entry.path() == progress()) &&
                           fs::is_empty(entry.path(), ignored);
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

void WorkFolder::clear() {
  remove_own(work_);
  make_folders();
  keep_ = false;
}

std::vector<std::string> WorkFolder::files() const { return files_in(result()); }

void WorkFolder::check() const {
  if (!inside_) return;
  std::error_code ignored;
  for (const std::string& file : files())
    if (!replaced_.contains(file) && fs::exists(fs::symlink_status(target_ / file, ignored)))
      fail(
          "{}/{}: was not written by an earlier run, and this one writes a file of that name; move "
          "it away or choose another folder",
          name_, file);
}

void WorkFolder::merge() const {
  const fs::path old = work_ / "replaced";
  std::vector<std::string> before, after = files();
  for (const std::string& file : replaced_)
    if (lies_in(target_, file)) before.push_back(file);
  const auto is_last = [](const std::string& file) { return file == kLast; };
  std::stable_partition(before.begin(), before.end(), is_last);
  std::stable_partition(after.begin(), after.end(), std::not_fn(is_last));
  write_file(work_ / kCommit, to_text(Json{{"before", before}, {"after", after}}) + "\n");
  flush_folder(work_);
  {
    Moves moves;
    moves.make_folder(old);
    for (const std::string& file : before) moves.move(target_ / file, old / file);
    for (const std::string& file : after) moves.move(result() / file, target_ / file);
    moves.finish();
  }
  for (const std::string& file : before)  // folders that held nothing else
    for (fs::path p = fs::path(file).parent_path(); !p.empty(); p = p.parent_path())
      ::rmdir((target_ / p).c_str());
}

std::string WorkFolder::fate(const std::string& what, const std::string& advice) const {
  std::error_code ignored;
  if (fs::is_directory(result(), ignored))
    return fmt::format("{} is kept in {}{}", what, result().string(), advice);
  return fmt::format("{} was in {}, which no longer exists", what, result().string());
}

void WorkFolder::commit() {
  keep();
  try {
    check();
    if (inside_) {
      merge();
    } else if (::rename(result().c_str(), target_.c_str()) != 0) {
      // rename() replaces at most an empty folder
      const int error = errno;
      const bool appeared = error == ENOTEMPTY || error == EEXIST || error == ENOTDIR;
      fail("{}: {}", name_,
           appeared ? "appeared during the run and is not replaced"
                    : fmt::format("cannot be put in place: {}", std::strerror(error)));
    }
  } catch (const Error& e) {
    fail("{}. {}", e.what(), fate("The finished result", "; move it to where you want it"));
  }
  flush_folder(inside_ ? target_ : target_.parent_path());
  remove_own(work_);
  ::rmdir(work_.c_str());
}

}  // namespace aqhost
