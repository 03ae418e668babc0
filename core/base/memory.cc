#include "base/memory.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <string>

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// The content of a file in /proc or /sys (whose size is not known beforehand), or "" if there is
/// none.
std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The number at the beginning of `text`, or -1 if there is none ("max").
int64_t number_in(std::string_view text) {
  int64_t number = -1;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

/// The value of a line of a file in /proc, converted from kB to bytes; 0 if there is no such line.
int64_t of_line(const char* file, std::string_view key) {
  const std::string text = text_of(file);
  const std::size_t at = text.find(key);
  if (at == std::string::npos) return 0;
  const std::size_t begin = text.find_first_not_of(" \t", at + key.size());
  return begin == std::string::npos ? 0 : 1024 * number_in(std::string_view(text).substr(begin));
}

int64_t of_status(std::string_view key) { return of_line("/proc/self/status", key); }

/// The minimum of `limit` and the numbers in the files called `name` in `folder` and in the folders
/// above it, up to `root`.
int64_t minimum_limit(fs::path folder, const fs::path& root, const char* name, int64_t limit) {
  for (;; folder = folder.parent_path()) {
    if (const int64_t found = number_in(text_of(folder / name)); found > 0)
      limit = std::min(limit, found);
    if (folder == root || folder == folder.parent_path()) return limit;
  }
}

bool has_memory(std::string_view controllers) {
  return ("," + std::string(controllers) + ",").find(",memory,") != std::string::npos;
}

}  // namespace

int64_t peak_memory_bytes() { return of_status("VmHWM:"); }

int64_t held_memory_bytes() { return of_status("VmRSS:"); }

int64_t anonymous_memory_bytes() { return of_status("RssAnon:"); }

int64_t available_memory_bytes() {
  const int64_t available = of_line("/proc/meminfo", "MemAvailable:");
  const int64_t limit = cgroup_memory_limit();
  if (limit == 0) return available;
  return std::min(available, std::max<int64_t>(0, limit - anonymous_memory_bytes()));
}

int64_t cgroup_memory_limit() {
  const int64_t physical = int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
  return cgroup_memory_limit(text_of("/proc/self/cgroup"), "/sys/fs/cgroup", physical);
}

int64_t cgroup_memory_limit(std::string_view groups, const fs::path& root, int64_t physical) {
  int64_t limit = physical;
  // lines are ID:CONTROLLERS:/PATH; version 2 has ID 0 and no controllers
  while (!groups.empty()) {
    const std::string_view line = groups.substr(0, groups.find('\n'));
    groups.remove_prefix(std::min(groups.size(), line.size() + 1));
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const fs::path group = fs::path(line.substr(second + 1)).relative_path();
    if (controllers.empty())
      limit = minimum_limit(root / group, root, "memory.max", limit);
    else if (has_memory(controllers))
      limit =
          minimum_limit(root / "memory" / group, root / "memory", "memory.limit_in_bytes", limit);
  }
  return limit < physical ? limit : 0;
}

}  // namespace aqhost
