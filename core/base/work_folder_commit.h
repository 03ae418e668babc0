#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

// The moves of a commit to a target that is a folder already. `work` is the work folder of the
// target (see WorkFolder).

namespace aqhost {

/// Moves the files `replaced` from the target to replaced/, and then all files of export/ to the
/// target. Writes first to commit.json which files these are, for undo_merge(). If a file cannot be
/// moved, moves the others back and throws an Error.
void merge_result(const std::filesystem::path& work, const std::filesystem::path& target,
                  const std::set<std::string>& replaced);

/// Takes back what a run that was killed in merge_result() has moved, as commit.json says. Throws
/// an Error if a file cannot be moved back.
void undo_merge(const std::filesystem::path& work, const std::filesystem::path& target);

/// Moves `files` of export/ to a new folder in `work`, and returns that folder. If a file cannot be
/// moved, moves the others back and throws an Error.
std::filesystem::path set_aside(const std::filesystem::path& work,
                                const std::vector<std::string>& files);

}  // namespace aqhost
