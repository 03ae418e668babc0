#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/source.h"

namespace aqhost {

/// The name of the first file of weights that is missing in a checkpoint folder: a shard that the
/// index names, or model.safetensors if there is no index either. "" if none is missing.
std::string missing_weights(const std::filesystem::path& directory);

/// A checkpoint folder in the Hugging Face layout: config.json, and model.safetensors or
/// model.safetensors.index.json with its shards. Opening it checks every file (see SafetensorsFile)
/// and the index: each tensor must be in the shard that the index names, every shard must exist,
/// and no tensor may be in two shards.
class Reader : public Source {
 public:
  explicit Reader(const std::filesystem::path& directory);

  const Json& config() const override { return config_; }
  const std::string& directory() const override { return directory_; }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* find(std::string_view name) const override;
  void read_f32(std::string_view name, int64_t begin, std::span<float> out) const override;
  bool read_stored(std::string_view name, int64_t begin, std::span<std::byte> out) const override;
  std::string file_of(std::string_view name) const override;
  std::vector<const SafetensorsFile*> files() const override;
  void check_unchanged() const override;

 private:
  struct Location {
    const SafetensorsFile* file;
    const StoredTensor* tensor;
  };

  void open_index(const std::filesystem::path& index);
  void add(const SafetensorsFile& file);
  const Location* locate(std::string_view name) const;

  std::string directory_;
  Json config_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<Location> locations_;  // sorted by name
  std::vector<TensorInfo> infos_;    // in the same order
};

}  // namespace aqhost
