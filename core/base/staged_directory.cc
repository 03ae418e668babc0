#include "base/staged_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// Without it no reader takes a folder for a checkpoint: it goes first and comes last.
constexpr const char* kLast = "config.json";
constexpr const char* kPart = ".part-";

/// The target without links, "." and ".."; what does not exist yet is appended as it is.
fs::path resolve(fs::path target) {
  if (target.filename().empty() && target.has_relative_path()) target = target.parent_path();
  std::error_code error, ignored;
  if (fs::is_symlink(target, ignored) && !fs::exists(target, ignored))
    fail("{}: is a link to {}, which does not exist; make that folder or remove the link",
         target.string(), fs::read_symlink(target, ignored).string());
  const fs::path absolute = fs::absolute(target, error);
  if (error) fail("{}: {}", target.string(), error.message());
  fs::path resolved = fs::weakly_canonical(absolute, error);  // a relative one could stay so
  if (error) resolved = absolute.lexically_normal();
  if (resolved.filename().empty() && resolved.has_relative_path())
    resolved = resolved.parent_path();
  if (fs::exists(resolved, ignored) && !fs::is_directory(resolved, ignored))
    fail("{}: exists and is no folder; choose another name", target.string());
  return resolved;
}

/// What every staging folder of this target begins with.
fs::path prefix_of(const fs::path& target, bool inside) {
  return inside ? target / kPart : fs::path(target.string() + kPart);
}

bool is_content(const fs::path& entry) {
  const std::string name = entry.filename().string();
  return !name.starts_with(kPart) && name != "lost+found";  // of a volume's root
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

/// Of a folder's files, as far as they can be seen.
int64_t bytes_in(const fs::path& folder) {
  int64_t bytes = 0;
  std::error_code error, ignored;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error))
    if (it->is_regular_file(ignored)) bytes += static_cast<int64_t>(it->file_size(ignored));
  return bytes;
}

/// Whether a file of that name lies in `folder` itself and not, by ".." or a link, elsewhere.
bool lies_in(const fs::path& folder, const fs::path& name) {
  std::error_code ignored;
  if (name.empty() || name.is_absolute() || name != name.lexically_normal()) return false;
  if (*name.begin() == "..") return false;
  for (fs::path parent = name.parent_path(); !parent.empty(); parent = parent.parent_path())
    if (!fs::is_directory(fs::symlink_status(folder / parent, ignored))) return false;
  const fs::file_status status = fs::symlink_status(folder / name, ignored);
  return fs::exists(status) && !fs::is_directory(status);
}

void flush_folder(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

/// Files moved one after another, and back again unless finish() is reached.
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

StagedDirectory::StagedDirectory(const fs::path& target, std::set<std::string> replaced)
    : name_(target.string()), replaced_(std::move(replaced)), target_(resolve(target)) {
  std::error_code ignored;
  inside_ = fs::is_directory(target_, ignored);
  if (replaced_.empty() && !is_free(target_))
    fail(
        "{}: already exists and is not empty; choose another folder, or pass --overwrite if an "
        "earlier run wrote it",
        name_);
  try {
    make();
    look_for_others();
  } catch (const Error&) {
    discard();
    throw;
  }
}

StagedDirectory::~StagedDirectory() {
  if (!keep_) discard();
  if (lock_ >= 0) ::close(lock_);
}

bool StagedDirectory::is_free(const fs::path& target) {
  if (!fs::is_directory(target)) return !fs::exists(target);
  const auto entries = list_folder(target);
  return std::none_of(entries.begin(), entries.end(),
                      [](const auto& entry) { return is_content(entry.path()); });
}

void StagedDirectory::make() {
  std::error_code error, ignored;
  fs::path parent = target_.parent_path();
  for (; !inside_ && !fs::exists(parent, ignored) && parent != parent.parent_path();
       parent = parent.parent_path())
    parents_.insert(parents_.begin(), parent);
  if (!inside_) fs::create_directories(target_.parent_path(), error);
  bool made = false;
  for (int i = 1; !made && !error; i++) {  // past what killed runs left
    staging_ = prefix_of(target_, inside_).string() + std::to_string(i);
    made = fs::create_directory(staging_, error);
  }
  if (error) {
    staging_.clear();
    fail("{}: {}: {}", name_, inside_ ? "cannot be written" : "cannot be made", error.message());
  }
  lock_ = ::open(staging_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ >= 0) ::flock(lock_, LOCK_EX | LOCK_NB);  // some file systems have no locks
}

/// After our own folder is made and locked: of two runs that start at once one sees the other.
void StagedDirectory::look_for_others() {
  const std::string prefix = prefix_of(target_, inside_).string();
  for (const auto& entry : list_folder(inside_ ? target_ : target_.parent_path())) {
    const fs::path& other = entry.path();
    std::error_code ignored;
    if (!other.string().starts_with(prefix) || other == staging_) continue;
    if (!entry.is_directory(ignored)) continue;
    const int fd = ::open(other.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool in_use = fd >= 0 && ::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (fd >= 0) ::close(fd);
    if (in_use)
      fail("{}: another run of aqhost is writing to it (in {}); choose another folder", name_,
           other.string());
    leftovers_.push_back({other, bytes_in(other)});
  }
}

void StagedDirectory::discard() {
  std::error_code ignored;
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
  for (auto it = parents_.rbegin(); it != parents_.rend(); ++it) ::rmdir(it->c_str());
}

std::vector<std::string> StagedDirectory::files() const { return files_in(staging_); }

void StagedDirectory::check() const {
  if (!inside_) return;
  std::error_code ignored;
  for (const std::string& file : files())
    if (!replaced_.contains(file) && fs::exists(fs::symlink_status(target_ / file, ignored)))
      fail(
          "{}/{}: was not written by an earlier run, and this one writes a file of that name; move "
          "it away or choose another folder",
          name_, file);
}

void StagedDirectory::merge() const {
  const fs::path old = staging_.string() + ".old";
  std::vector<std::string> before, after = files();
  for (const std::string& file : replaced_)
    if (lies_in(target_, file)) before.push_back(file);
  const auto is_last = [](const std::string& file) { return file == kLast; };
  std::stable_partition(before.begin(), before.end(), is_last);
  std::stable_partition(after.begin(), after.end(), std::not_fn(is_last));
  {
    Moves moves;
    moves.make_folder(old);
    for (const std::string& file : before) moves.move(target_ / file, old / file);
    for (const std::string& file : after) moves.move(staging_ / file, target_ / file);
    moves.finish();
  }
  std::error_code ignored;
  fs::remove_all(old, ignored);
  fs::remove_all(staging_, ignored);
  for (const std::string& file : before)  // folders that held nothing else
    for (fs::path p = fs::path(file).parent_path(); !p.empty(); p = p.parent_path())
      ::rmdir((target_ / p).c_str());
}

std::string StagedDirectory::fate(const std::string& what, const std::string& advice) const {
  std::error_code ignored;
  if (fs::is_directory(staging_, ignored))
    return fmt::format("{} is kept in {}{}", what, staging_.string(), advice);
  return fmt::format("{} was in {}, which no longer exists", what, staging_.string());
}

void StagedDirectory::commit() {
  keep();
  try {
    check();
    if (inside_) {
      merge();
    } else if (::rename(staging_.c_str(), target_.c_str()) != 0) {  // replaces nothing but an
      const int error = errno;                                      // empty folder
      const bool appeared = error == ENOTEMPTY || error == EEXIST || error == ENOTDIR;
      fail("{}: {}", name_,
           appeared ? "appeared during the run and is not replaced"
                    : fmt::format("cannot be put in place: {}", std::strerror(error)));
    }
  } catch (const Error& e) {
    fail("{}. {}", e.what(), fate("The finished result", "; move it to where you want it"));
  }
  flush_folder(inside_ ? target_ : target_.parent_path());
}

}  // namespace aqhost
