#pragma once

#include <aq/abi.h>

#include <boost/dll/shared_library.hpp>
#include <memory>
#include <string>

#include "plugin/elf.h"
#include "plugin/plugin_file.h"

namespace aqhost {

/// The first fields of the aq_entry in a plugin's file. Throws an Error if the file is not a
/// plugin.
EntryHead entry_head(const PluginFile& file);
/// "1.0"
std::string abi_text(const EntryHead& head);

/// A plugin's library, which stays loaded while this object lives. The message of an Error is the
/// continuation of a sentence that begins with the file's name. Not copied.
class Library {
 public:
  /// Reads the version from the file and refuses another major version of the ABI. Only then loads
  /// the file through its descriptor, which runs its constructors.
  explicit Library(std::shared_ptr<PluginFile> file);
  /// Calls deinit() if init() was called, then unloads the library. Everything that the plugin made
  /// must be destroyed before.
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  const std::string& path() const { return loaded_.file->path(); }
  const aq_entry& entry() const { return *entry_; }

  /// Calls init(). Must be called once, before factory().
  void start(const aq_host& host);

  /// Returns the factory that get_factory() has for `id`, or nullptr.
  const void* factory(const char* id) const;

 private:
  /// The file, and the library loaded from it.
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
