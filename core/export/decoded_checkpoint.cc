#include "export/decoded_checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "base/error.h"
#include "export/quantization_config.h"

namespace aqhost {
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr int64_t kMostFeatures = int64_t{1} << 31;

/// Options that a config group tells of, under the names that recipes use.
Json options_of(const Json& weights) {
  Json options = Json::object();
  const std::string strategy = weights.value("strategy", std::string("tensor"));
  const auto group_size = weights.find("group_size");
  if (group_size != weights.end() && group_size->is_number_integer())
    options["group_size"] = *group_size;
  else if (strategy == "channel" || strategy == "tensor")
    options["group_size"] = strategy == "channel" ? -1 : 0;
  if (weights.contains("symmetric") && !weights.value("symmetric", true))
    options["symmetric"] = false;
  if (weights.contains("element")) options["element"] = weights["element"];
  return options;
}

/// What of a group decides how its bytes are read.
bool same_format(const Json& ours, const Json& theirs) {
  if (ours.value("format", "") != theirs.value("format", "")) return false;
  const Json none;
  const Json &a = ours.value("weights", none), &b = theirs.value("weights", none);
  for (const char* key : {"num_bits", "type", "symmetric", "strategy", "group_size", "element"})
    if (a.value(key, none) != b.value(key, none)) return false;
  return true;
}

std::shared_ptr<const Format> recognise(const ConfigGroup& group, const Registry& registry,
                                        const std::string& where) {
  const Json options = options_of(group.format["weights"]);
  std::string tried;
  for (const std::string& id : registry.format_ids()) {
    try {
      auto format = registry.create_format(id, options);
      if (same_format(format->config(), group.format)) return format;
    } catch (const Error&) {
      // a format that does not take these options is not the one
    }
    tried += (tried.empty() ? "" : ", ") + id;
  }
  fail(
      "{}: quantization_config.config_groups.{}: no format plugin reads format {} with weights {}; "
      "tried {}",
      where, group.name, group.format["format"].dump(), group.format["weights"].dump(), tried);
}

/// The suffixes by which a packed module is told from a dense one.
bool is_packed_suffix(std::string_view suffix) {
  return suffix.starts_with("weight_") && suffix != "weight_g_idx";
}

/// [rows, cols] of a stored module, found so that the format's own layout is what is there.
std::optional<std::pair<int64_t, int64_t>> shape_of(const Reader& reader, const std::string& name,
                                                    const Format& format) {
  if (const StoredTensor* shape = reader.stored(name + ".weight_shape")) {
    const std::size_t width = shape->dtype == DType::kI64 ? 8 : shape->dtype == DType::kI32 ? 4 : 0;
    if (width == 0 || shape->shape != std::vector<int64_t>{2}) return std::nullopt;
    int64_t value[2] = {0, 0};
    for (std::size_t i = 0; i < 2; i++)
      std::memcpy(&value[i], shape->bytes.data() + i * width, width);  // little endian
    return std::pair(value[0], value[1]);
  }
  if (const StoredTensor* codes = reader.stored(name + ".weight");
      codes && codes->shape.size() == 2)
    return std::pair(codes->shape[0], codes->shape[1]);
  const StoredTensor* scale = reader.stored(name + ".weight_scale");
  if (scale != nullptr && scale->shape.size() == 2 && format.desc().group_size > 0)
    return std::pair(scale->shape[0], scale->shape[1] * format.desc().group_size);
  return std::nullopt;
}

}  // namespace

DecodedCheckpoint::DecodedCheckpoint(std::unique_ptr<Reader> reader, const Registry& registry)
    : reader_(std::move(reader)) {
  const std::string where = directory() + "/config.json";
  const auto groups = parse_quantization_config(config().at("quantization_config"), where);
  std::map<const ConfigGroup*, std::shared_ptr<const Format>> formats;
  std::set<std::string> names, packed;
  for (const TensorInfo& info : reader_->tensors()) {
    const std::size_t dot = info.name.rfind('.');
    if (dot != std::string::npos && is_packed_suffix(std::string_view(info.name).substr(dot + 1)))
      names.insert(info.name.substr(0, dot));
  }
  for (const std::string& name : names) {
    const ConfigGroup* group = find_group(groups, name);
    if (group == nullptr)
      fail("{}: no group of quantization_config covers {}, which is stored quantized", where, name);
    auto& format = formats[group];
    if (!format) format = recognise(*group, registry, where);
    add_module(name, format);
    for (const TensorInfo& info : format->packed(modules_.back().rows, modules_.back().cols))
      packed.insert(name + "." + info.name);
    infos_.push_back(
        {name + std::string(kWeight), DType::kBF16, {modules_.back().rows, modules_.back().cols}});
  }
  for (const TensorInfo& info : reader_->tensors())
    if (!packed.contains(info.name)) infos_.push_back(info);
  std::sort(infos_.begin(), infos_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
}

void DecodedCheckpoint::add_module(const std::string& name, std::shared_ptr<const Format> format) {
  const auto shape = shape_of(*reader_, name, *format);
  const auto plausible = [](int64_t n) { return n > 0 && n <= kMostFeatures; };
  if (!shape || !plausible(shape->first) || !plausible(shape->second))
    fail("{}: {}: cannot tell the shape of the matrix (weight_shape is missing or wrong)",
         directory(), name);
  for (const TensorInfo& expected : format->packed(shape->first, shape->second)) {
    const StoredTensor* found = reader_->stored(name + "." + expected.name);
    if (found == nullptr)
      fail("{}: {}.{} is missing; format {} of a {} x {} matrix needs it", directory(), name,
           expected.name, format->id(), shape->first, shape->second);
    if (found->dtype != expected.dtype || found->shape != expected.shape)
      fail("{}: {}.{} is {} [{}], format {} of a {} x {} matrix expects {} [{}]", directory(), name,
           expected.name, dtype_name(found->dtype), fmt::join(found->shape, ", "), format->id(),
           shape->first, shape->second, dtype_name(expected.dtype),
           fmt::join(expected.shape, ", "));
  }
  modules_.push_back({name, std::move(format), shape->first, shape->second});
}

const TensorInfo* DecodedCheckpoint::find(std::string_view name) const {
  const auto it =
      std::lower_bound(infos_.begin(), infos_.end(), name,
                       [](const TensorInfo& a, std::string_view b) { return a.name < b; });
  return it != infos_.end() && it->name == name ? &*it : nullptr;
}

const StoredModule* DecodedCheckpoint::find_module(std::string_view tensor) const {
  if (!tensor.ends_with(kWeight)) return nullptr;
  const std::string_view name = tensor.substr(0, tensor.size() - kWeight.size());
  const auto it =
      std::lower_bound(modules_.begin(), modules_.end(), name,
                       [](const StoredModule& a, std::string_view b) { return a.name < b; });
  return it != modules_.end() && it->name == name ? &*it : nullptr;
}

QuantizedMatrix DecodedCheckpoint::read(const StoredModule& module) const {
  std::vector<std::span<const std::byte>> packed;
  for (const TensorInfo& info : module.format->packed(module.rows, module.cols))
    packed.push_back(reader_->stored(module.name + "." + info.name)->bytes);
  try {
    return module.format->unpack(module.rows, module.cols, packed);
  } catch (const Error& e) {
    fail("{}: {}: {}", directory(), module.name, e.what());
  }
}

void DecodedCheckpoint::read_f32(std::string_view name, int64_t begin, std::span<float> out) const {
  const StoredModule* module = find_module(name);
  if (module == nullptr) return reader_->read_f32(name, begin, out);
  const std::vector<float> values = module->format->dequantize(read(*module));
  std::copy_n(values.begin() + begin, out.size(), out.begin());
}

int64_t DecodedCheckpoint::packed_bytes() const {
  int64_t bytes = 0;
  for (const StoredModule& m : modules_)
    for (const TensorInfo& info : m.format->packed(m.rows, m.cols))
      if (info.name != "weight_shape") bytes += info.numel() * dtype_size(info.dtype);
  return bytes;
}

int64_t DecodedCheckpoint::packed_weights() const {
  int64_t weights = 0;
  for (const StoredModule& m : modules_) weights += m.rows * m.cols;
  return weights;
}

std::unique_ptr<Source> open_source(const std::filesystem::path& directory,
                                    const Registry& registry) {
  auto reader = std::make_unique<Reader>(directory);
  if (!reader->config().contains("quantization_config")) return reader;
  return std::make_unique<DecodedCheckpoint>(std::move(reader), registry);
}

}  // namespace aqhost
