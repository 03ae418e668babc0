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
  std::string sha256;  // of the file that was opened; empty if it could not be
  std::string id, kind /* "model", "quantizer" */, name, version, vendor, description;
  std::vector<std::string> aliases;  // of a model
  std::string abi;                   // "1.0"
  std::string refused;               // a sentence, empty if it is in use
};

struct ModelMatch {
  std::string id, why;
  int score = 0;  // 0..100
};

/// Folders to look in, in this order: `given` (--plugin-dir; Error if one is missing),
/// AQ_PLUGIN_PATH (colon-separated), <exe>/../lib/aqhost/plugins, <exe>/../plugins. Those that were
/// not given may be missing.
std::vector<std::filesystem::path> plugin_search_path(
    const std::vector<std::filesystem::path>& given);

/// How files are met in a scan.
struct ScanOptions {
  /// Also load what other users may change; see PluginFile.
  bool trust = false;
  /// First look at each file in a child process, where there can be one (while this process has one
  /// thread), so that a plugin that crashes or hangs in the scan is refused and no more.
  bool probe = true;
};

/// The plugins found at run time. A library stays loaded until this and all that came from it are
/// gone. A process has one at a time (a plugin's init() is called once). Not copied; const
/// functions may be called from any thread.
class Registry {
 public:
  /// Opens every *.so in those of `folders` that are there (not below them). A file that is no
  /// plugin, is of another ABI major, throws, or lies is refused with a reason; the others still
  /// load. An id offered twice: the first found is used, the second refused (the same file found
  /// twice is not listed twice).
  explicit Registry(const std::vector<std::filesystem::path>& folders, ScanOptions options = {});
  /// Of one file, whoever may change it.
  static std::unique_ptr<Registry> of_file(const std::filesystem::path& file);
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  const std::vector<PluginInfo>& plugins() const;
  std::vector<std::string> model_ids() const;
  std::vector<std::string> format_ids() const;
  /// The folders it was made of, for a message: "/a, /b (no such folder)".
  std::string folders() const;

  /// Adapters that know this config.json, best first; those that do not are left out.
  std::vector<ModelMatch> probe(const Json& config) const;

  /// The adapter of `source`; `type` is an id, an alias (the first plugin found that has it), or
  /// "auto" (the best probe). Error: nobody knows it, with what can be told of it (see
  /// unknown_model.h), a tie, or the adapter refuses, with its message. What the adapter warns of
  /// (keys of config.json that it does not know) is logged; with `strict` it is an Error.
  std::unique_ptr<const Model> create_model(const Source& source, const std::string& type,
                                            bool strict = false) const;

  /// The format `id` with `options` (group_size, symmetric ...). Error: unknown id (with the
  /// nearest), or the plugin refuses, with its message.
  std::shared_ptr<const Format> create_format(const std::string& id, const Json& options) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace aqhost
