#include "plugin/config_only.h"

#include <algorithm>
#include <map>

#include "base/error.h"

namespace aqhost {
namespace fs = std::filesystem;
namespace {

/// The type in which a checkpoint with this config.json stores weights.
DType stored_type(const Json& config) {
  const auto inner = config.find("text_config");
  for (const Json* fields : {inner == config.end() ? &config : &*inner, &config})
    for (const char* key : {"dtype", "torch_dtype"}) {
      const Json type = fields->is_object() ? fields->value(key, Json()) : Json();
      if (type == "float32") return DType::kF32;
      if (type == "float16") return DType::kF16;
      if (type == "bfloat16") return DType::kBF16;
    }
  return DType::kBF16;
}

/// The tensors that hold all of `needed`. Several of those may be parts of one tensor.
std::vector<TensorInfo> tensors_with(const std::vector<NeededTensor>& needed, DType type) {
  struct Parts {
    int64_t experts = 0, rows = 0;
    const NeededTensor* any = nullptr;
  };
  std::map<std::string, Parts> by_name;
  for (const NeededTensor& n : needed) {
    Parts& parts = by_name[n.ref.name];
    parts.any = &n;
    parts.experts = std::max(parts.experts, n.ref.index + 1);
    parts.rows = std::max(parts.rows, n.ref.row_begin + (n.shape[0] - 1) * n.ref.row_step + 1);
  }
  std::vector<TensorInfo> tensors;
  for (const auto& [name, parts] : by_name) {
    std::vector<int64_t> shape = parts.any->shape;
    shape[0] = parts.rows;
    if (parts.any->ref.transposed) std::reverse(shape.begin(), shape.end());
    if (parts.experts > 0) shape.insert(shape.begin(), parts.experts);
    tensors.push_back({name, type, std::move(shape)});
  }
  return tensors;
}

}  // namespace

ConfigOnly::ConfigOnly(const fs::path& file, const Registry& registry, const std::string& type)
    : directory_(file.parent_path().empty() ? "." : file.parent_path().string()) {
  if (fs::is_directory(file))
    fail("{}: is a folder, expected the file config.json itself", file.string());
  config_ = read_json(file);
  if (!config_.is_object()) fail("{}: expected a JSON object, as config.json is", file.string());
  const auto model = registry.describe_model(*this, type);
  tensors_ = tensors_with(model->needed_tensors(*this), stored_type(config_));
}

const TensorInfo* ConfigOnly::find(std::string_view name) const {
  const auto it =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorInfo& t, std::string_view n) { return t.name < n; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

void ConfigOnly::read_f32(std::string_view name, int64_t, std::span<float>) const {
  fail("{}: tensor {} cannot be read, because only config.json is there", directory_, name);
}

}  // namespace aqhost
