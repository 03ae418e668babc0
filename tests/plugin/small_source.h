#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/source.h"

namespace aqhost {

/// The checkpoint of the model in fixtures/lying_model.cc: names and shapes, all weights 0.
class SmallSource : public Source {
 public:
  SmallSource() {
    add("embed", {10, 8});
    add("norm", {8});
    add("head", {10, 8});
    for (const std::string layer : {"layers.0.", "layers.1."}) {
      for (const char* norm : {"attn_norm", "ffn_norm"}) add(layer + norm, {8});
      for (const char* wide : {"q", "o"}) add(layer + wide, {8, 8});
      for (const char* narrow : {"k", "v"}) add(layer + narrow, {4, 8});
      add(layer + "router", {4, 8});
      for (int e = 0; e < 4; e++) {
        const std::string expert = layer + "experts." + std::to_string(e);
        add(expert + ".gate", {6, 8});
        add(expert + ".up", {6, 8});
        add(expert + ".down", {8, 6});
      }
    }
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
    std::fill(out.begin(), out.end(), 0.0f);
  }

 private:
  void add(const std::string& name, std::vector<int64_t> shape) {
    infos_.push_back({name + ".weight", DType::kF32, std::move(shape)});
  }

  std::vector<TensorInfo> infos_;
  Json config_ = Json::object();
  std::string directory_ = "small";
};

}  // namespace aqhost
