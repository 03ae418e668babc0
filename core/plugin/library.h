#pragma once

#include <aq/abi.h>

#include <boost/dll/shared_library.hpp>
#include <memory>
#include <string>

#include "plugin/elf.h"
#include "plugin/plugin_file.h"

namespace aqhost {

/// aq_entry's first fields in the plugin that `file` is. Error if it is no plugin.
EntryHead entry_head(const PluginFile& file);
/// "1.0"
std::string abi_text(const EntryHead& head);

/// A plugin's library, loaded from construction to destruction. Error: a sentence about the file
/// that goes on after its name. Not copied.
class Library {
 public:
  /// Reads the version from the file and refuses another ABI major; only then loads the file
  /// through its descriptor, which runs its constructors.
  explicit Library(std::shared_ptr<PluginFile> file);
  /// Calls deinit() where init() was, then unloads the library: whatever the plugin made is gone
  /// before.
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  const std::string& path() const { return loaded_.file->path(); }
  const aq_entry& entry() const { return *entry_; }

  /// Calls init(). Once, before factory().
  void start(const aq_host& host);

  /// What get_factory() has for `id`, or nullptr.
  const void* factory(const char* id) const;

 private:
  /// The file, and the library that was loaded from it.
  struct Loaded {
    std::shared_ptr<PluginFile> file;
    boost::dll::shared_library library{};
    ~Loaded();
  };
  Loaded loaded_;
  const aq_entry* entry_ = nullptr;
  bool started_ = false;
};

}  // namespace aqhost
