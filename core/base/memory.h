#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace aqhost {

/// The most physical memory that this program has held at once, in bytes. (Not ru_maxrss, which a
/// program inherits from what started it.)
int64_t peak_memory_bytes();

/// The memory that this program holds now, without files that it maps (libraries), in bytes.
int64_t anonymous_memory_bytes();

/// The least memory limit, in bytes, of the control groups that this process is in (a container's,
/// a batch system's; versions 1 and 2), or 0 if there is none below the machine's own memory.
int64_t cgroup_memory_limit();

/// The same of a process whose /proc/self/cgroup has the text `groups`, where the hierarchies are
/// mounted at `root` (/sys/fs/cgroup).
int64_t cgroup_memory_limit(std::string_view groups, const std::filesystem::path& root,
                            int64_t physical);

}  // namespace aqhost
