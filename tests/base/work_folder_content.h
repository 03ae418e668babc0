#pragma once

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/work_folder.h"

namespace aqhost {

/// The manifest of a work folder that says that aqhost made the folder.
inline const std::string kOurs = R"({"generator":"aqhost"})";

/// Every file below a folder, with its content, as "a=1 sub/b=2".
inline std::string content_of(const std::filesystem::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (!entry.is_directory())
      files.push_back(entry.path().lexically_relative(folder).string() + "=" +
                      read_file(entry.path()));
  std::sort(files.begin(), files.end());
  std::string text;
  for (const std::string& file : files) text += (text.empty() ? "" : " ") + file;
  return text;
}

/// The number of files and folders directly in a folder.
inline std::ptrdiff_t entries(const std::filesystem::path& folder) {
  return std::distance(std::filesystem::directory_iterator(folder), {});
}

/// The message with which commit() fails.
inline std::string failure(WorkFolder& staged) {
  try {
    staged.commit();
  } catch (const Error& e) {
    return e.what();
  }
  return "no failure";
}

}  // namespace aqhost
