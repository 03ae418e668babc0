#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace aqhost {

/// The maximum of physical memory that this program has held so far, in bytes. (This is not
/// ru_maxrss, which a program inherits from the program that started it.)
int64_t peak_memory_bytes();

/// The physical memory that this program holds now, in bytes.
int64_t held_memory_bytes();

/// The memory that this program holds now, in bytes, without mapped files such as libraries.
int64_t anonymous_memory_bytes();

/// The memory, in bytes, that this program can still take without swapping: what the machine has
/// available, and no more than the control groups leave.
int64_t available_memory_bytes();

/// The minimum of the memory limits, in bytes, of the control groups that this process is in (those
/// of a container or a batch system; versions 1 and 2). 0 if no limit is below the machine's own
/// memory.
int64_t cgroup_memory_limit();

/// The same for a process whose /proc/self/cgroup has the text `groups`, with the hierarchies
/// mounted at `root` (/sys/fs/cgroup).
int64_t cgroup_memory_limit(std::string_view groups, const std::filesystem::path& root,
                            int64_t physical);

}  // namespace aqhost
