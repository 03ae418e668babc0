#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "plugin/format.h"
#include "plugin/model.h"

namespace aqhost {

struct PluginInfo {
  std::string path;
  std::string sha256;  // of the opened file; empty if it could not be opened
  std::string id, kind /* "model", "quantizer" */, name, version, vendor, description;
  std::vector<std::string> aliases;  // of a model
  std::string abi;                   // "1.0"
  std::string refused;               // why it is not used, as a sentence; empty if it is used
};

struct ModelMatch {
  std::string id, why;
  int score = 0;  // 0 to 100
};

/// The folders in which plugins are searched, in this order: `given` (--plugin-dir; throws an
/// Error if one is missing), AQ_PLUGIN_PATH (colon-separated), <exe>/../lib/aqhost/plugins,
/// <exe>/../plugins. Folders that were not given may be missing.
std::vector<std::filesystem::path> plugin_search_path(
    const std::vector<std::filesystem::path>& given);

/// How a scan treats files.
struct ScanOptions {
  /// Also load files that other users may change; see PluginFile.
  bool trust = false;
  /// First load each file in a child process, if this process can fork (that is, while it has only
  /// one thread). So a plugin that crashes or hangs when it is loaded is refused, and does no other
  /// harm.
  bool probe = true;
};

/// The plugins found at run time. A library stays loaded until this object and everything that came
/// from the library are destroyed. A process may have only one registry at a time, because a
/// plugin's init() is called once. Not copied; const functions are thread-safe.
class Registry {
 public:
  /// Opens every *.so directly in those of `folders` that exist. A file is refused with a reason if
  /// it is not a plugin, has another major version of the ABI, throws an exception, or returns what
  /// the ABI forbids; the other files still load. If an id is offered twice, the first one is used
  /// and the second is refused. A file that is found twice is listed once.
  explicit Registry(const std::vector<std::filesystem::path>& folders, ScanOptions options = {});
  /// A registry of one file, without the check of who may change it.
  static std::unique_ptr<Registry> of_file(const std::filesystem::path& file);
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  const std::vector<PluginInfo>& plugins() const;
  std::vector<std::string> model_ids() const;
  std::vector<std::string> format_ids() const;
  /// The folders that were searched, for messages: "/a, /b (no such folder)".
  std::string folders() const;

  /// The adapters that recognise this config.json, best first.
  std::vector<ModelMatch> probe(const Json& config) const;

  /// Creates the adapter for `source`. `type` is an id, an alias (of the first plugin that has it),
  /// or "auto" (the adapter with the best probe). Throws an Error if no adapter recognises the
  /// model (with what is known of the model, see unknown_model.h), if there is a tie, or if the
  /// adapter refuses it (with its message). Warnings of the adapter (about keys of config.json that
  /// it does not know) are logged; with `strict` they are an Error.
  std::unique_ptr<const Model> create_model(const Source& source, const std::string& type,
                                            bool strict = false) const;
  /// Does the same for a `source` without tensors, of which only config.json is known. What the
  /// adapter describes is not checked against tensors, and its warnings are dropped.
  std::unique_ptr<const Model> describe_model(const Source& source, const std::string& type) const;

  /// Creates the format `id` with `options` (group_size, symmetric ...). Throws an Error if the id
  /// is unknown (with the nearest known id), or if the plugin refuses the options (with its
  /// message).
  std::shared_ptr<const Format> create_format(const std::string& id, const Json& options) const;

 private:
  std::unique_ptr<const Model> open_model(const Source& source, const std::string& type,
                                          bool has_tensors,
                                          std::vector<std::string>& warnings) const;

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace aqhost
