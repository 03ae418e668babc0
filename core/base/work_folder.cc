#include "base/work_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/field.h"
#include "base/file.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// No reader takes a folder without this file for a checkpoint. Therefore it is removed first and
/// added last.
constexpr const char* kLast = "config.json";
constexpr const char* kWork = ".work";
constexpr const char* kUnfinishedManifest = "manifest.json.part";  // see write_file()
constexpr const char* kCommit = "commit.json";                     // what merge() moves
/// The folders in the work folder. The last one holds files of the target while merge() moves.
constexpr const char *kExport = "export", *kProgress = "progress", *kReplaced = "replaced";

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

bool is_ours(const fs::path& work) { return manifest_of(work).has_value(); }

/// All files of a folder and of the folders below it, relative to it and sorted.
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

/// The files of export/ that the manifest of a work folder lists; nullopt if it has no list.
std::optional<std::set<std::string>> listed_files(const fs::path& work) {
  const std::optional<Json> manifest = manifest_of(work);
  if (!manifest || !manifest->contains(WorkFolder::kFiles)) return {};
  std::set<std::string> files;
  for (const Json& name : (*manifest)[WorkFolder::kFiles])
    if (name.is_string()) files.insert(name.get<std::string>());
  return files;
}

/// The files that belong to the run of a work folder, relative to it; the manifest is the last.
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
  add(kExport, is_export);
  add(kProgress, is_progress);
  add(kReplaced, [](const std::string& /*name*/) { return true; });
  for (const char* name : {kUnfinishedManifest, kCommit, WorkFolder::kManifest})
    own.emplace_back(name);
  return own;
}

/// Removes the folders between a file, which is gone, and `folder` that contained nothing else.
void remove_empty_parents(const fs::path& folder, const fs::path& file) {
  for (fs::path p = file.parent_path(); !p.empty(); p = p.parent_path())
    ::rmdir((folder / p).c_str());
}

/// Removes the files of the run from a work folder, and its folders if they are empty then. Throws
/// an Error if a folder cannot be read or a file cannot be removed.
void remove_own(const fs::path& work) {
  for (const std::string& file : own_files(work)) {
    if (::unlink((work / file).c_str()) != 0 && errno != ENOENT)
      fail("{}: cannot be removed: {}", (work / file).string(), std::strerror(errno));
    remove_empty_parents(work, file);
  }
  for (const char* folder : {kExport, kProgress, kReplaced}) ::rmdir((work / folder).c_str());
}

/// Removes a work folder whose run has ended. What cannot be removed stays.
void remove_work(const fs::path& work) {
  try {
    remove_own(work);
  } catch (const Error&) {  // the result is not affected
  }
  ::rmdir(work.c_str());
}

/// Removes the work folder of a run that was killed after it had put its result in place.
void remove_finished(const fs::path& work) {
  std::error_code ignored;
  const fs::path result = work / kExport;
  if (!is_ours(work) || WorkFolder::is_locked(work)) return;
  if (fs::exists(result, ignored) && !files_in(result).empty()) return;
  remove_work(work);
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

/// Whether an open folder is the one that has this path.
bool is_at(int folder, const fs::path& path) {
  struct stat open {
  }, named{};
  return ::fstat(folder, &open) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(fs::symlink_status(path, ignored));
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
  if (!keep_ && is_at(lock_, work_)) {
    remove_work(work_);
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
      move_back(resolved / file.text(), work / kExport / file.text());
  for (const Field& file : moved["before"].items())
    if (lies_in(work / kReplaced, file.text()))
      move_back(work / kReplaced / file.text(), resolved / file.text());
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
  if (in_use || !is_at(lock_, work_))  // or the other run has just ended and removed it
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
  remove_own(work_);
  make_folders();
  keep_ = false;
}

int64_t WorkFolder::clearable_bytes() const {
  constexpr int64_t kBlock = 512;  // the unit of st_blocks
  int64_t bytes = 0;
  struct stat status {};
  for (const std::string& file : own_files(work_))
    if (::lstat((work_ / file).c_str(), &status) == 0) bytes += kBlock * status.st_blocks;
  return bytes;
}

void WorkFolder::write_manifest(Json manifest, const std::vector<std::string>& files) const {
  for (const std::string& name : listed_files(work_).value_or(std::set<std::string>()))
    if (std::find(files.begin(), files.end(), name) == files.end() && lies_in(result(), name))
      ::unlink((result() / name).c_str());
  manifest[kFiles] = files;
  write_file(work_ / kManifest, to_text(manifest, 2) + "\n");
  flush_folder(work_);
  flush_folder(work_.parent_path());
}

void WorkFolder::check_replaceable(const std::vector<std::string>& files) const {
  if (!inside_) return;
  std::error_code ignored;
  for (const std::string& file : files)
    if (!replaced_.contains(file) && fs::exists(fs::symlink_status(target_ / file, ignored)))
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
  fs::path aside = work_ / "not-exported";
  for (int i = 2; fs::exists(aside); i++) aside = work_ / fmt::format("not-exported-{}", i);
  Moves moves;
  for (const std::string& file : others) moves.move(result() / file, aside / file);
  moves.finish();
  for (const std::string& file : others) remove_empty_parents(result(), file);
  return fmt::format(
      "{}: {}{} not written by the run and {} not part of the export, but now in {}",
      result().string(), others.front(),
      others.size() == 1 ? " was" : fmt::format(" and {} more were", others.size() - 1),
      others.size() == 1 ? "is" : "are", aside.string());
}

void WorkFolder::merge() const {
  const fs::path old = work_ / kReplaced;
  std::vector<std::string> before, after = files_in(result());
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
  for (const std::string& file : before) remove_empty_parents(target_, file);
  for (const std::string& file : after) remove_empty_parents(result(), file);
}

void WorkFolder::commit() {
  check_in_place();
  keep();
  try {
    check_replaceable(files_in(result()));
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
    fail("{}. The finished result is kept in {}; move it to where you want it", e.what(),
         result().string());
  }
  flush_folder(inside_ ? target_ : target_.parent_path());
  remove_work(work_);
}

}  // namespace aqhost
