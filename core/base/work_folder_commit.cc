#include "base/work_folder_commit.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "base/error.h"
#include "base/field.h"
#include "base/file.h"
#include "base/json.h"
#include "base/work_folder_files.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// No reader takes a folder without this file for a checkpoint. Therefore it is removed first and
/// added last.
constexpr const char* kLast = "config.json";

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

void merge_result(const fs::path& work, const fs::path& target,
                  const std::set<std::string>& replaced) {
  const fs::path result = work / kExportFolder, old = work / kReplacedFolder;
  std::vector<std::string> before, after = files_in(result);
  for (const std::string& file : replaced)
    if (lies_in(target, file)) before.push_back(file);
  const auto is_last = [](const std::string& file) { return file == kLast; };
  std::stable_partition(before.begin(), before.end(), is_last);
  std::stable_partition(after.begin(), after.end(), std::not_fn(is_last));
  write_file(work / kCommitRecord, to_text(Json{{"before", before}, {"after", after}}) + "\n");
  flush_folder(work);
  {
    Moves moves;
    moves.make_folder(old);
    for (const std::string& file : before) moves.move(target / file, old / file);
    for (const std::string& file : after) moves.move(result / file, target / file);
    moves.finish();
  }
  for (const std::string& file : before) remove_empty_parents(target, file);
  for (const std::string& file : after) remove_empty_parents(result, file);
}

void undo_merge(const fs::path& work, const fs::path& target) {
  std::error_code ignored;
  const Json json = read_json(work / kCommitRecord);
  const Field moved(json, (work / kCommitRecord).string());
  const auto move_back = [&](const fs::path& from, const fs::path& to) {
    if (!fs::exists(fs::symlink_status(from, ignored)) ||
        fs::exists(fs::symlink_status(to, ignored)))
      return;
    fs::create_directories(to.parent_path(), ignored);
    if (::rename(from.c_str(), to.c_str()) != 0)
      fail("{}: cannot be moved back to {}: {}", from.string(), to.string(), std::strerror(errno));
  };
  for (const Field& file : moved["after"].items())
    if (lies_in(target, file.text()))
      move_back(target / file.text(), work / kExportFolder / file.text());
  for (const Field& file : moved["before"].items())
    if (lies_in(work / kReplacedFolder, file.text()))
      move_back(work / kReplacedFolder / file.text(), target / file.text());
  fs::remove(work / kCommitRecord, ignored);
}

fs::path set_aside(const fs::path& work, const std::vector<std::string>& files) {
  const fs::path result = work / kExportFolder;
  fs::path aside = work / "not-exported";
  for (int i = 2; fs::exists(aside); i++) aside = work / fmt::format("not-exported-{}", i);
  Moves moves;
  for (const std::string& file : files) moves.move(result / file, aside / file);
  moves.finish();
  for (const std::string& file : files) remove_empty_parents(result, file);
  return aside;
}

}  // namespace aqhost
