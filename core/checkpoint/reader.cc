#include "checkpoint/reader.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "checkpoint/convert.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr std::size_t kPart = std::size_t{1} << 18;

using Shards = std::map<std::string, std::set<std::string>>;  // file -> its tensors

Shards read_index(const fs::path& path) {
  const Json index = read_json(path);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object())
    fail("{}: weight_map is missing or no object", path.string());
  Shards shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string())
      fail("{}: weight_map.{} is {}, expected a file name", path.string(), tensor, shard.dump());
    const auto& file = shard.get_ref<const std::string&>();
    if (file.empty() || file == "." || file == ".." || file.find_first_of("/\\") != file.npos)
      fail("{}: weight_map.{} names \"{}\", expected a file of the same folder", path.string(),
           tensor, file);
    shards[file].insert(tensor);
  }
  return shards;
}

}  // namespace

std::string missing_weights(const fs::path& directory) {
  std::error_code ignored;
  if (fs::exists(directory / kSingle, ignored)) return {};
  if (!fs::exists(directory / kIndex, ignored)) return kSingle;
  for (const auto& shard : read_index(directory / kIndex))
    if (!fs::exists(directory / shard.first, ignored)) return shard.first;
  return {};
}

Reader::Reader(const fs::path& directory) : directory_(directory.string()) {
  if (!fs::is_directory(directory))
    fail("{}: no such folder; a checkpoint folder with config.json was expected", directory_);
  config_ = read_json(directory / "config.json");
  if (!config_.is_object()) fail("{}/config.json: expected a JSON object", directory_);
  // like transformers, prefers the single file
  if (fs::exists(directory / kSingle)) {
    files_.push_back(std::make_unique<SafetensorsFile>(directory / kSingle));
    add(*files_.back());
  } else if (fs::exists(directory / kIndex)) {
    open_index(directory / kIndex);
  } else {
    fail("{}: neither {} nor {} is there; only safetensors checkpoints can be read", directory_,
         kSingle, kIndex);
  }
  std::sort(locations_.begin(), locations_.end(),
            [](const Location& a, const Location& b) { return a.tensor->name < b.tensor->name; });
  for (std::size_t i = 0; i < locations_.size(); i++) {
    infos_.push_back(*locations_[i].tensor);
    if (i > 0 && infos_[i].name == infos_[i - 1].name)
      fail("{}: tensor {} is in two files, {} and {}", directory_, infos_[i].name,
           locations_[i - 1].file->path().filename().string(),
           locations_[i].file->path().filename().string());
  }
}

void Reader::open_index(const fs::path& index) {
  const fs::path folder = index.parent_path();
  for (const auto& [name, tensors] : read_index(index)) {
    if (!fs::exists(folder / name))
      fail("{}: shard {} is missing; {} names it for {} tensors, {} first", directory_, name,
           kIndex, tensors.size(), *tensors.begin());
    files_.push_back(std::make_unique<SafetensorsFile>(folder / name));
    std::set<std::string> found;
    for (const StoredTensor& t : files_.back()->tensors()) found.insert(t.name);
    for (const std::string& t : tensors)
      if (!found.contains(t))
        fail("{}: {} says that tensor {} is in {}, where it is not", directory_, kIndex, t, name);
    for (const std::string& t : found)
      if (!tensors.contains(t))
        fail("{}: {} has tensor {}, which {} does not list there", directory_, name, t, kIndex);
    add(*files_.back());
  }
}

void Reader::add(const SafetensorsFile& file) {
  for (const StoredTensor& tensor : file.tensors()) locations_.push_back({&file, &tensor});
}

const Reader::Location* Reader::locate(std::string_view name) const {
  const auto it =
      std::lower_bound(locations_.begin(), locations_.end(), name,
                       [](const Location& a, std::string_view b) { return a.tensor->name < b; });
  return it != locations_.end() && it->tensor->name == name ? &*it : nullptr;
}

const TensorInfo* Reader::find(std::string_view name) const {
  const Location* location = locate(name);
  return location == nullptr ? nullptr : location->tensor;
}

bool Reader::read_stored(std::string_view name, int64_t begin, std::span<std::byte> out) const {
  const Location* location = locate(name);
  if (location == nullptr) return false;
  location->file->read(*location->tensor, begin, out);
  return true;
}

std::string Reader::file_of(std::string_view name) const {
  const Location* location = locate(name);
  return location == nullptr ? directory_ : location->file->path().string();
}

void Reader::check_unchanged() const {
  for (const auto& file : files_) file->check_unchanged();
}

std::vector<const SafetensorsFile*> Reader::files() const {
  std::vector<const SafetensorsFile*> files;
  for (const auto& file : files_) files.push_back(file.get());
  return files;
}

void Reader::read_f32(std::string_view name, int64_t begin, std::span<float> out) const {
  const Location* location = locate(name);
  if (location == nullptr) fail("{}: there is no tensor {}", directory_, name);
  const auto& [file, tensor] = *location;
  const std::string where = file->path().string();
  const auto count = static_cast<int64_t>(out.size());
  if (begin < 0 || begin > tensor->numel() || count > tensor->numel() - begin)
    fail("{}: tensor {}: elements {} to {} of {} were asked for", where, name, begin, begin + count,
         tensor->numel());
  const int64_t width = dtype_size(tensor->dtype);
  const std::size_t part =
      std::min(kPart / static_cast<std::size_t>(width), out.size());  // fits a core's cache
  const auto buffer =
      std::make_unique_for_overwrite<std::byte[]>(part * static_cast<std::size_t>(width));
  for (std::size_t done = 0; done < out.size(); done += part) {
    const auto values = out.subspan(done, std::min(part, out.size() - done));
    const int64_t at = begin + static_cast<int64_t>(done);
    const std::span bytes(buffer.get(), values.size() * static_cast<std::size_t>(width));
    file->read(*tensor, at * width, bytes);
    convert_f32(*tensor, bytes, at, values, where);
  }
}

}  // namespace aqhost
