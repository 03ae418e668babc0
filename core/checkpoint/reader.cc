#include "checkpoint/reader.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "base/error.h"
#include "checkpoint/convert.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

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

Reader::Reader(const fs::path& directory) : directory_(directory.string()) {
  if (!fs::is_directory(directory))
    fail("{}: no such folder; a checkpoint folder with config.json was expected", directory_);
  config_ = read_json(directory / "config.json");
  if (!config_.is_object()) fail("{}/config.json: expected a JSON object", directory_);
  // as transformers: the single file first
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

const TensorInfo* Reader::find(std::string_view name) const { return stored(name); }

bool Reader::read_stored(std::string_view name, int64_t begin, std::span<std::byte> out) const {
  const Location* location = locate(name);
  if (location == nullptr) return false;
  const auto part = location->tensor->bytes.subspan(static_cast<std::size_t>(begin), out.size());
  std::memcpy(out.data(), part.data(), part.size());
  MappedFile::forget(part);
  return true;
}

const StoredTensor* Reader::stored(std::string_view name) const {
  const Location* location = locate(name);
  return location == nullptr ? nullptr : location->tensor;
}

std::string Reader::file_of(std::string_view name) const {
  const Location* location = locate(name);
  return location == nullptr ? directory_ : location->file->path().string();
}

void Reader::read_f32(std::string_view name, int64_t begin, std::span<float> out) const {
  const Location* location = locate(name);
  if (location == nullptr) fail("{}: there is no tensor {}", directory_, name);
  const StoredTensor& tensor = *location->tensor;
  convert_f32(tensor, begin, out, location->file->path().string());
  const auto size = static_cast<std::size_t>(dtype_size(tensor.dtype));
  MappedFile::forget(
      tensor.bytes.subspan(static_cast<std::size_t>(begin) * size, out.size() * size));
}

}  // namespace aqhost
