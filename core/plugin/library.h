#pragma once

#include <aq/abi.h>

#include <boost/dll/shared_library.hpp>
#include <filesystem>
#include <string>

namespace aqhost {

/// A plugin's file, open from construction to destruction. Error: a sentence about the file that
/// goes on after its name. Not copied.
class Library {
 public:
  /// Loads `file`; Error if that fails, if it is no plugin, or if its entry is cut short.
  explicit Library(const std::filesystem::path& file);
  /// Calls deinit() where init() was, then closes the file: whatever the plugin made is gone
  /// before.
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  const std::string& path() const { return path_; }
  const aq_entry& entry() const { return *entry_; }
  std::string abi() const;  // "1.0"

  /// Refuses another ABI major, then calls init(). Once, before factory().
  void start(const aq_host& host);

  /// What get_factory() has for `id`, or nullptr.
  const void* factory(const char* id) const;

 private:
  boost::dll::shared_library library_;
  std::string path_;
  const aq_entry* entry_ = nullptr;
  bool started_ = false;
};

}  // namespace aqhost
