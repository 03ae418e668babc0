#include "plugin/registry.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/dll/runtime_symbol_info.hpp>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <sstream>

#include "base/child.h"
#include "base/error.h"
#include "base/nearest.h"
#include "plugin/call.h"
#include "plugin/dl_tensor.h"
#include "plugin/library.h"
#include "plugin/unknown_model.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr uint32_t kMaximumOffered = 256;
constexpr int kProbeSeconds = 30;

/// Receives the warnings of plugins that run on this thread; if nullptr, they are logged.
thread_local std::vector<std::string>* collected_warnings = nullptr;

/// Collects these warnings while this object lives.
class CollectWarnings {
 public:
  explicit CollectWarnings(std::vector<std::string>& into) { collected_warnings = &into; }
  ~CollectWarnings() { collected_warnings = nullptr; }
  CollectWarnings(const CollectWarnings&) = delete;
  CollectWarnings& operator=(const CollectWarnings&) = delete;
};

// A plugin may log from any thread, until the process ends.
void AQ_CALL log_message(const aq_host*, int32_t severity, const char* message) {
  if (severity == AQ_LOG_WARNING && collected_warnings != nullptr && message != nullptr) {
    collected_warnings->push_back(one_line(message));
    return;
  }
  const auto level = severity >= AQ_LOG_ERROR     ? spdlog::level::err
                     : severity == AQ_LOG_WARNING ? spdlog::level::warn
                     : severity == AQ_LOG_INFO    ? spdlog::level::info
                                                  : spdlog::level::debug;
  spdlog::log(level, "{}", message == nullptr ? "" : message);
}
const void* AQ_CALL no_extension(const aq_host*, const char*) { return nullptr; }

const aq_host kHost{sizeof(aq_host), AQ_ABI_MINOR, nullptr,     "aqhost",
                    AQHOST_VERSION,  log_message,  no_extension};

/// One model or format that a factory offers.
template <typename Factory>
struct Offer {
  const Factory* factory;
  uint32_t index;
  std::shared_ptr<const Library> library;
};

std::string text_or_empty(const char* text) { return text == nullptr ? "" : text; }

/// Copies an id and checks that it can be used in recipes.
std::string checked_id(const aq_descriptor* d) {
  // the size in ABI 1.0, because older plugins lack the fields of later minor versions
  constexpr std::size_t kFirstSize =
      offsetof(aq_descriptor, description) + sizeof(aq_descriptor::description);
  if (d == nullptr || d->struct_size < kFirstSize) fail("its descriptor is missing or too short");
  const std::string id = text_or_empty(d->id);
  const bool clean =
      !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
      });
  if (!clean) fail("its id \"{}\" is not made of a-z, 0-9, '_', '-' and '.'", id);
  return id;
}

bool leads_to_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

template <typename Map>
std::vector<std::string> keys_of(const Map& map) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : map) keys.push_back(key);
  return keys;
}

/// Silences stdout, stderr and logging in the child process that only tries to load a plugin.
void be_silent() {
  spdlog::set_level(spdlog::level::off);
  const int nowhere = open("/dev/null", O_WRONLY);
  if (nowhere < 0) return;
  dup2(nowhere, STDOUT_FILENO);
  dup2(nowhere, STDERR_FILENO);
}

}  // namespace

struct Registry::Impl {
  std::vector<PluginInfo> listed;
  std::map<std::string, Offer<aq_model_factory>> models;
  std::map<std::string, Offer<aq_quantizer_factory>> formats;
  std::vector<fs::path> folders;
  std::set<std::pair<dev_t, ino_t>> seen, refused;  // files
  mutable std::mutex creating;                      // because create() is [serial]

  void scan(const fs::path& folder, const ScanOptions& options) {
    std::vector<fs::path> files;
    std::error_code error;
    fs::directory_iterator it(folder, error);
    if (error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory)
      return;
    for (const fs::directory_iterator end; !error && it != end; it.increment(error))
      if (std::error_code ignored; it->path().extension() == ".so" && !it->is_directory(ignored))
        files.push_back(it->path());
    if (error) fail("plugin folder {}: {}", folder.string(), error.message());
    std::sort(files.begin(), files.end());
    // A child costs milliseconds, so all files are tried in one. Only if that child ends badly is
    // each file tried in a child of its own, to find the one that is to blame.
    ScanOptions each = options;
    if (options.probe && files.size() > 1 && has_one_thread() && load_in_one_child(files, options))
      each.probe = false;
    for (const fs::path& file : files) take(file, each);
  }

  /// Whether a child process that loads all files neither crashes nor hangs.
  static bool load_in_one_child(const std::vector<fs::path>& files, const ScanOptions& options) {
    const ChildEnd end = run_in_child(kProbeSeconds, [&] {
      be_silent();
      Impl all;
      for (const fs::path& file : files) {
        try {
          all.load(std::make_shared<PluginFile>(file, options.trust), PluginInfo());
        } catch (const std::exception&) {  // the parent will meet the same error
        }
      }
      return std::string();
    });
    return end.trouble(kProbeSeconds).empty();
  }

  /// Loads a file and lists what it offers, or lists why it is refused.
  void take(const fs::path& file, const ScanOptions& options) {
    PluginInfo info;
    info.path = file.string();
    try {
      const auto opened = std::make_shared<PluginFile>(file, options.trust);
      if (!seen.insert(opened->identity()).second) return;
      info.sha256 = opened->sha256();
      info.abi = abi_text(entry_head(*opened));
      if (options.probe && has_one_thread()) probe(opened);
      load(opened, info);
    } catch (const std::exception& e) {
      info.refused = e.what();
      struct stat status {};
      const bool known = ::stat(file.c_str(), &status) == 0 &&
                         !refused.insert({status.st_dev, status.st_ino}).second;
      if (!known) listed.push_back(info);
    }
  }

  /// Loads the file in a child process, and throws an Error if the child crashes or hangs. All
  /// other reasons to refuse the file are found when this process loads it.
  static void probe(const std::shared_ptr<PluginFile>& file) {
    const ChildEnd end = run_in_child(kProbeSeconds, [&] {
      be_silent();
      try {
        Impl().load(file, PluginInfo());
      } catch (const std::exception&) {  // the parent will meet the same error
      }
      return std::string();
    });
    if (const std::string trouble = end.trouble(kProbeSeconds); !trouble.empty())
      fail("{} when it was looked at", trouble);
  }

  /// Adds everything that the file offers, or nothing if there is an error.
  void load(const std::shared_ptr<PluginFile>& file, const PluginInfo& info) {
    const auto library = std::make_shared<Library>(file);
    library->start(kHost);
    const auto* model = static_cast<const aq_model_factory*>(library->factory(AQ_MODEL_FACTORY_ID));
    const auto* format =
        static_cast<const aq_quantizer_factory*>(library->factory(AQ_QUANTIZER_FACTORY_ID));
    if (model == nullptr && format == nullptr) fail("it offers neither models nor formats");
    if (model != nullptr && !AQ_HAS(model, probe)) fail("its model factory lacks a function");
    auto its_models = described(model, "model", info);
    read_aliases(model, its_models);
    const auto its_formats = described(format, "quantizer", info);
    add(model, its_models, library, models);
    add(format, its_formats, library, formats);
  }

  /// What a factory offers, in its order; empty for nullptr.
  template <typename Factory>
  static std::vector<PluginInfo> described(const Factory* factory, const char* kind,
                                           PluginInfo info) {
    std::vector<PluginInfo> infos;
    if (factory == nullptr) return infos;
    if (!AQ_HAS(factory, count) || !AQ_HAS(factory, descriptor) || !AQ_HAS(factory, create))
      fail("its {} factory lacks a function", kind);
    const uint32_t count = call_or_fail("count", [&] { return factory->count(factory); });
    if (count == 0 || count > kMaximumOffered) fail("it offers {} of kind {}", count, kind);
    info.kind = kind;
    for (uint32_t i = 0; i < count; i++) {
      const aq_descriptor* d =
          call_or_fail("descriptor", [&] { return factory->descriptor(factory, i); });
      info.id = checked_id(d);
      info.name = text_or_empty(d->name);
      info.version = text_or_empty(d->version);
      info.vendor = text_or_empty(d->vendor);
      info.description = text_or_empty(d->description);
      infos.push_back(info);
    }
    return infos;
  }

  static void read_aliases(const aq_model_factory* factory, std::vector<PluginInfo>& infos) {
    if (factory == nullptr || !AQ_HAS(factory, aliases)) return;
    for (uint32_t i = 0; i < infos.size(); i++) {
      std::istringstream names(
          text_or_empty(call_or_fail("aliases", [&] { return factory->aliases(factory, i); })));
      for (std::string name; names >> name;) infos[i].aliases.push_back(name);
    }
  }

  /// The id for an id or an alias.
  std::string model_id(const std::string& name) const {
    if (models.contains(name)) return name;
    std::vector<std::string> known = keys_of(models);
    for (const PluginInfo& info : listed) {
      if (!info.refused.empty()) continue;
      for (const std::string& alias : info.aliases) {
        if (alias == name) return info.id;
        known.push_back(alias);
      }
    }
    fail("--model-type \"{}\": no such model plugin{}", name,
         models.empty() ? found_text({}, "model") : did_you_mean(name, known));
  }

  std::string folders_text() const {
    std::vector<std::string> texts;
    for (const fs::path& folder : folders)
      texts.push_back(folder.string() + (leads_to_folder(folder) ? "" : " (no such folder)"));
    return fmt::format("{}", fmt::join(texts, ", "));
  }

  /// "; the model plugins found are: ...", or where plugins were searched if there are none.
  std::string found_text(const std::vector<std::string>& ids, const char* kind) const {
    if (!ids.empty())
      return fmt::format("; the {} plugins found are: {}", kind, fmt::join(ids, " "));
    return fmt::format("; no {} plugin was found in {}; give --plugin-dir", kind, folders_text());
  }

  template <typename Factory>
  void add(const Factory* factory, const std::vector<PluginInfo>& infos,
           const std::shared_ptr<const Library>& library,
           std::map<std::string, Offer<Factory>>& offers) {
    for (uint32_t i = 0; i < infos.size(); i++) {
      PluginInfo info = infos[i];
      const auto [it, added] = offers.try_emplace(info.id, Offer<Factory>{factory, i, library});
      if (!added)
        info.refused = fmt::format("the id \"{}\" is taken by {}, found first", info.id,
                                   it->second.library->path());
      listed.push_back(std::move(info));
    }
  }
};

/// Calls create() of the offer's factory with `arg`. If it returns nothing, throws an Error that
/// begins with the plugin's file.
template <typename Factory, typename Arg>
auto create(const Offer<Factory>& offer, const std::string& what, const Arg& arg) {
  using Object = decltype(offer.factory->create(offer.factory, 0, &kHost, arg, nullptr));
  Object raw = nullptr;
  aq_error error;
  const aq_status status = call_plugin(error, [&](aq_error* e) {
    raw = offer.factory->create(offer.factory, offer.index, &kHost, arg, e);
    return raw == nullptr ? AQ_INTERNAL : AQ_OK;
  });
  if (status != AQ_OK)
    fail("plugin {}: {}: {}", offer.library->path(), what, error_text(status, error));
  return raw;
}

std::vector<fs::path> plugin_search_path(const std::vector<fs::path>& given) {
  std::vector<fs::path> folders;
  for (const fs::path& folder : given) {
    if (!leads_to_folder(folder)) fail("--plugin-dir {}: no such folder", folder.string());
    folders.push_back(folder);
  }
  if (const char* list = std::getenv("AQ_PLUGIN_PATH")) {
    std::string_view rest = list;
    while (!rest.empty()) {
      const std::string_view folder = rest.substr(0, rest.find(':'));
      rest.remove_prefix(std::min(rest.size(), folder.size() + 1));
      if (!folder.empty()) folders.emplace_back(folder);
    }
  }
  const fs::path bin = fs::path(boost::dll::program_location().string()).parent_path();
  folders.push_back(bin.parent_path() / "lib/aqhost/plugins");
  folders.push_back(bin.parent_path() / "plugins");
  return folders;
}

Registry::Registry(const std::vector<fs::path>& folders, ScanOptions options)
    : impl_(std::make_unique<Impl>()) {
  impl_->folders = folders;
  for (const fs::path& folder : folders) impl_->scan(folder, options);
}

std::unique_ptr<Registry> Registry::of_file(const fs::path& file) {
  auto registry = std::make_unique<Registry>(std::vector<fs::path>());
  registry->impl_->take(file, {.trust = true, .probe = false});
  return registry;
}

Registry::~Registry() = default;

const std::vector<PluginInfo>& Registry::plugins() const { return impl_->listed; }

namespace {

aq_status AQ_CALL find_tensor(const aq_checkpoint* self, const char* name, aq_tensor_meta* out) {
  const auto* source = static_cast<const Source*>(self->host_data);
  const TensorInfo* info = name == nullptr ? nullptr : source->find(name);
  if (info == nullptr || info->shape.size() > 8) return AQ_NOT_FOUND;
  *out = {};
  out->dtype = dl_type(info->dtype);
  out->ndim = static_cast<int32_t>(info->shape.size());
  std::copy(info->shape.begin(), info->shape.end(), out->shape);
  return AQ_OK;
}

}  // namespace

std::vector<std::string> Registry::model_ids() const { return keys_of(impl_->models); }
std::vector<std::string> Registry::format_ids() const { return keys_of(impl_->formats); }

std::string Registry::folders() const { return impl_->folders_text(); }

std::vector<ModelMatch> Registry::probe(const Json& config) const {
  const std::string text = to_text(config);
  std::vector<ModelMatch> matches;
  for (const auto& [id, offer] : impl_->models) {
    char why[256] = "";
    int32_t score = 0;
    try {
      score = call_or_fail("probe", [&, &offer = offer] {
        return offer.factory->probe(offer.factory, offer.index, text.c_str(), why, sizeof why);
      });
    } catch (const Error& e) {
      spdlog::warn("plugin {}: model \"{}\": {}", offer.library->path(), id, e.what());
    }
    why[sizeof why - 1] = '\0';
    if (score > 0) matches.push_back({id, why, std::min(score, 100)});
  }
  std::stable_sort(matches.begin(), matches.end(),
                   [](const ModelMatch& a, const ModelMatch& b) { return a.score > b.score; });
  return matches;
}

std::unique_ptr<const Model> Registry::open_model(const Source& source, const std::string& type,
                                                  bool has_tensors,
                                                  std::vector<std::string>& warnings) const {
  std::string id = type;
  if (type == "auto") {
    const std::vector<ModelMatch> matches = probe(source.config());
    if (matches.empty() && impl_->models.empty())
      fail("{}/config.json: no model plugin was found in {}; give --plugin-dir", source.directory(),
           folders());
    if (matches.empty()) {
      const UnknownModel unknown = describe_unknown(source.config());
      fail("{}/config.json: {}: it is taken for {} {}; {}{}", source.directory(), unknown.why,
           unknown.kind, to_text(unknown.found), unknown.advice,
           impl_->found_text(model_ids(), "model"));
    }
    if (matches.size() > 1 && matches[0].score == matches[1].score)
      fail("{}/config.json: both {} and {} say it is theirs; choose with --model-type",
           source.directory(), matches[0].id, matches[1].id);
    id = matches[0].id;
  }
  id = impl_->model_id(id);
  const auto it = impl_->models.find(id);
  const std::string config = to_text(source.config());
  const aq_checkpoint checkpoint{sizeof checkpoint, 0, const_cast<Source*>(&source), config.c_str(),
                                 find_tensor};
  const aq_model* raw = nullptr;
  {
    const std::lock_guard lock(impl_->creating);
    const CollectWarnings collect(warnings);
    raw = create(it->second, fmt::format("model \"{}\"", id), &checkpoint);
  }
  return std::make_unique<const Model>(raw, id, it->second.library->path(), source,
                                       it->second.library, has_tensors);
}

std::unique_ptr<const Model> Registry::describe_model(const Source& source,
                                                      const std::string& type) const {
  std::vector<std::string> dropped;
  return open_model(source, type, false, dropped);
}

std::unique_ptr<const Model> Registry::create_model(const Source& source, const std::string& type,
                                                    bool strict) const {
  std::vector<std::string> warnings;
  auto model = open_model(source, type, true, warnings);
  for (const std::string& warning : warnings) {
    if (strict) fail("{}/{}", source.directory(), warning);
    spdlog::warn("{}/{}", source.directory(), warning);
  }
  return model;
}

std::shared_ptr<const Format> Registry::create_format(const std::string& id,
                                                      const Json& options) const {
  const auto it = impl_->formats.find(id);
  if (it == impl_->formats.end())
    fail("no plugin offers the format \"{}\"{}", id,
         impl_->formats.empty() ? impl_->found_text({}, "format") : did_you_mean(id, format_ids()));
  const std::string text = to_text(options);
  const std::lock_guard lock(impl_->creating);
  const aq_quantizer* raw = create(it->second, fmt::format("format \"{}\"", id), text.c_str());
  return std::make_shared<const Format>(raw, id, it->second.library->path(), options,
                                        it->second.library);
}

}  // namespace aqhost
