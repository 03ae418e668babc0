#include "checkpoint/model_folder.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/reader.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kRepository = "models--";
constexpr const char* kMain = "main";

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// `path` with the home folder in place of "~" at its beginning.
fs::path with_home(const std::string& path) {
  if (path != "~" && !path.starts_with("~/")) return path;
  return fs::path(variable("HOME")) / fs::path(path.substr(std::min<std::size_t>(path.size(), 2)));
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// "models--ORG--NAME" as "ORG/NAME"; "" if `name` is no name of a repository folder.
std::string id_of_repository(const std::string& name) {
  if (!name.starts_with(kRepository)) return {};
  std::string id = name.substr(kRepository.size());
  if (const std::size_t at = id.find("--"); at != id.npos) id.replace(at, 2, "/");
  return id;
}

std::string repository_of_id(std::string id) {
  if (const std::size_t at = id.find('/'); at != id.npos) id.replace(at, 1, "--");
  return std::string(kRepository) + id;
}

/// Whether `text` can be a model's id on the Hub: NAME or ORG/NAME.
bool is_id(const std::string& text) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.' || c == '/';
  };
  const auto edge = [](char c) { return c == '/' || c == '.' || c == '-'; };
  return !text.empty() && std::all_of(text.begin(), text.end(), allowed) &&
         std::count(text.begin(), text.end(), '/') <= 1 && !edge(text.front()) &&
         !edge(text.back()) && text.find("/.") == text.npos && text.find("..") == text.npos &&
         text.find("--") == text.npos;
}

/// A model in a cache, and the revision that is asked for.
struct Wanted {
  std::string id, revision = kMain;
  fs::path cache;

  fs::path repository() const { return cache / repository_of_id(id); }
  /// "hf download ORG/NAME": fetches the model, or the one file of it that is needed.
  std::string command(ModelPart part) const {
    std::string text = "hf download " + id;
    if (part == ModelPart::kConfig) text += " config.json";
    if (revision != kMain) text += " --revision " + revision;
    if (cache != hub_cache()) text += " --cache-dir " + cache.string();
    return text;
  }
};

/// The snapshot of the revision, if the cache has it. A revision is the name of a file in refs/,
/// which contains a commit, or a commit itself.
std::optional<fs::path> snapshot(const Wanted& wanted) {
  const fs::path repository = wanted.repository();
  const fs::path ref = repository / "refs" / wanted.revision;
  std::string commit = wanted.revision;
  std::error_code ignored;
  if (fs::is_regular_file(ref, ignored)) {
    commit = read_file(ref);
    commit.erase(std::min(commit.find_last_not_of(" \r\n") + 1, commit.size()));
  }
  if (commit.empty() || commit.find('/') != commit.npos || commit.starts_with(".")) return {};
  const fs::path folder = repository / "snapshots" / commit;
  if (!fs::is_directory(folder, ignored)) return {};
  return folder;
}

/// The name of the first file that `part` needs and the folder lacks; "" if it has them all. A link
/// to nothing is what an unfinished download leaves.
std::string missing_file(const fs::path& folder, ModelPart part) {
  const auto lacks = [&](const std::string& name) { return !is_there(folder / name); };
  if (part == ModelPart::kTokenizer) return lacks("tokenizer.json") ? "tokenizer.json" : "";
  if (lacks("config.json")) return "config.json";
  if (part == ModelPart::kConfig) return {};
  for (const fs::directory_entry& entry : list_folder(folder))
    if (const std::string name = entry.path().filename().string(); lacks(name)) return name;
  return missing_weights(folder);
}

void check_complete(const Wanted& wanted, const fs::path& folder, ModelPart part) {
  if (const std::string file = missing_file(folder, part); !file.empty())
    fail("{}: the snapshot is not complete, for {} is missing; {} fetches what is missing",
         folder.string(), file, wanted.command(part));
}

/// Splits ORG/NAME@REVISION. Nothing if `given` is no such text.
std::optional<Wanted> parse_id(const std::string& given) {
  Wanted wanted{given.substr(0, given.find('@')), kMain, hub_cache()};
  if (const std::size_t at = given.find('@'); at != given.npos)
    wanted.revision = given.substr(at + 1);
  const std::string& revision = wanted.revision;
  if (!is_id(wanted.id) || revision.empty() || revision.front() == '/' ||
      revision.find("..") != revision.npos)
    return {};
  return wanted;
}

/// What is wanted if `folder` is a repository or a snapshot in a cache.
std::optional<Wanted> parse_folder(const fs::path& folder) {
  std::error_code ignored;
  fs::path whole = fs::absolute(folder, ignored).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();  // it ended in a slash
  if (const std::string id = id_of_repository(whole.filename().string());
      !id.empty() && is_there(whole / "snapshots"))
    return Wanted{id, kMain, whole.parent_path()};
  if (const std::string id = hub_id(whole); !id.empty())
    return Wanted{id, whole.filename().string(), whole.parent_path().parent_path().parent_path()};
  return {};
}

}  // namespace

fs::path hub_cache() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (const std::string cache = variable(name); !cache.empty()) return with_home(cache);
  if (const std::string home = variable("HF_HOME"); !home.empty()) return with_home(home) / "hub";
  const std::string cache = variable("XDG_CACHE_HOME");
  return with_home(cache.empty() ? "~/.cache" : cache) / "huggingface" / "hub";
}

fs::path find_model(const std::string& given, ModelPart part) {
  std::error_code ignored;
  const bool is_folder = fs::is_directory(given, ignored);
  if (!is_folder && is_there(given)) return given;
  const std::optional<Wanted> wanted = is_folder ? parse_folder(given) : parse_id(given);
  if (!wanted) return given;
  const std::optional<fs::path> folder = snapshot(*wanted);
  if (!folder && is_folder)
    fail("{}: the cache folder has no snapshot that refs/{} names; {} fetches it", given,
         wanted->revision, wanted->command(part));
  if (!folder && wanted->id.find('/') == wanted->id.npos && given.find('@') == given.npos)
    return given;
  if (!folder)
    fail("{}: there is no such folder, and the cache {} has no model of this id{}; {} fetches it",
         given, wanted->cache.string(),
         wanted->revision == kMain ? "" : " in the revision " + wanted->revision,
         wanted->command(part));
  check_complete(*wanted, *folder, part);
  const bool is_snapshot = is_folder && !hub_id(given).empty();
  return is_snapshot ? fs::path(given) : *folder;
}

bool is_hub_id(const std::string& text) { return is_id(text) && text.find('/') != text.npos; }

std::string hub_id(const fs::path& folder) {
  std::error_code ignored;
  fs::path whole = fs::absolute(folder, ignored).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();
  if (whole.parent_path().filename() != "snapshots") return {};
  return id_of_repository(whole.parent_path().parent_path().filename().string());
}

}  // namespace aqhost
