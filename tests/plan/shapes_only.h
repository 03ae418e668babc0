#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/source.h"

namespace aqhost {

/// A checkpoint with names and shapes, whose weights are all 0, for tests that run no model.
class ShapesOnly : public Source {
 public:
  explicit ShapesOnly(Json config) : config_(std::move(config)) {}

  /// Adds one tensor.
  void tensor(const std::string& name, std::vector<int64_t> shape) {
    infos_.push_back({name, DType::kBF16, std::move(shape)});
  }
  /// Adds the weight of a linear map or of a norm.
  void add(const std::string& name, std::vector<int64_t> shape) {
    tensor(name + ".weight", std::move(shape));
  }
  /// Adds a gated FFN with matrices of these names.
  void ffn(const std::string& prefix, int64_t inner, int64_t hidden, const char* gate = "gate_proj",
           const char* up = "up_proj", const char* down = "down_proj") {
    add(prefix + gate, {inner, hidden});
    add(prefix + up, {inner, hidden});
    add(prefix + down, {hidden, inner});
  }

  const Json& config() const override { return config_; }
  const std::string& directory() const override { return directory_; }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* find(std::string_view name) const override {
    for (const TensorInfo& info : infos_)
      if (info.name == name) return &info;
    return nullptr;
  }
  void read_f32(std::string_view, int64_t, std::span<float> out) const override {
    std::fill(out.begin(), out.end(), 0.0F);
  }

 private:
  Json config_;
  std::vector<TensorInfo> infos_;
  std::string directory_ = "/nowhere";
};

}  // namespace aqhost
