#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/source.h"

namespace aqhost {

/// A Source of float32 tensors that lie in memory.
class MemorySource : public Source {
 public:
  explicit MemorySource(std::map<std::string, at::Tensor> tensors) : tensors_(std::move(tensors)) {
    for (const auto& [name, tensor] : tensors_)
      infos_.push_back({name, DType::kF32, tensor.sizes().vec()});
  }

  const Json& config() const override { return config_; }
  const std::string& directory() const override { return directory_; }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  const TensorInfo* find(std::string_view name) const override {
    for (const TensorInfo& info : infos_)
      if (info.name == name) return &info;
    return nullptr;
  }
  void read_f32(std::string_view name, int64_t begin, std::span<float> out) const override {
    const at::Tensor flat = tensors_.at(std::string(name)).flatten().contiguous();
    const auto n = static_cast<int64_t>(out.size());
    if (begin < 0 || begin + n > flat.numel()) fail("{}: {} + {} is outside", name, begin, n);
    std::copy_n(flat.data_ptr<float>() + begin, n, out.begin());
  }

 private:
  std::map<std::string, at::Tensor> tensors_;
  std::vector<TensorInfo> infos_;
  Json config_ = Json::object();
  std::string directory_ = "memory";
};

}  // namespace aqhost
