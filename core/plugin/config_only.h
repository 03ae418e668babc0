#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/source.h"
#include "plugin/registry.h"

namespace aqhost {

/// A checkpoint of which only config.json is there, for a plan before its download. It has the
/// tensors that the model's adapter needs, with the names, shapes and type that config.json
/// implies, and no data. Tensors that a published checkpoint has besides, which are only copied,
/// are missing.
class ConfigOnly : public Source {
 public:
  /// Reads the file and describes the model with an adapter of `registry`; `type` is that of
  /// create_model(). Throws an Error that names the file if it is no JSON object, or as
  /// create_model() does.
  ConfigOnly(const std::filesystem::path& file, const Registry& registry, const std::string& type);

  const Json& config() const override { return config_; }
  const std::string& directory() const override { return directory_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* find(std::string_view name) const override;
  /// Throws an Error.
  void read_f32(std::string_view name, int64_t begin, std::span<float> out) const override;

 private:
  std::string directory_;
  Json config_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace aqhost
