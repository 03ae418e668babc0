#include "export/decoded_checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/field.h"
#include "export/gptq.h"
#include "export/quantization_config.h"

namespace aqhost {
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr int64_t kMostFeatures = int64_t{1} << 31;
constexpr std::pair<DType, const char*> kRealTypes[] = {
    {DType::kBF16, "bfloat16"}, {DType::kF16, "float16"}, {DType::kF32, "float32"}};

/// The options that "weights" or "input_activations" of a config group contain, under the names
/// that recipes use. Throws an Error that names the field if a value has the wrong type.
Json options_of(const Field& weights) {
  Json options = Json::object();
  const std::string strategy = weights["strategy"].text_or("tensor");
  if (!weights["num_bits"].is_null()) weights["num_bits"].integer(1, 64);
  weights["type"].text_or("int");
  if (const Field size = weights["group_size"]; !size.is_null())
    options["group_size"] = size.integer(-1, kMostFeatures - 1);
  else if (strategy == "channel" || strategy == "tensor")
    options["group_size"] = strategy == "channel" ? -1 : 0;
  if (!weights["symmetric"].flag_or(true)) options["symmetric"] = false;
  if (const Field element = weights["element"]; !element.is_null())
    options["element"] = element.text();
  return options;
}

/// Whether those settings of "weights" or "input_activations" are equal that decide how they are
/// read.
bool same_numbers(const Json& a, const Json& b) {
  const Json none;
  for (const char* key : {"num_bits", "type", "symmetric", "strategy", "group_size", "element"})
    if (a.value(key, none) != b.value(key, none)) return false;
  return true;
}

/// Makes a format with `options`. A format that has only one type of scale has no option
/// scale_dtype, so that option is dropped if the format refuses it.
std::shared_ptr<const Format> make_format(const Registry& registry, const std::string& id,
                                          Json options) {
  try {
    return registry.create_format(id, options);
  } catch (const Error&) {
    if (options.erase("scale_dtype") == 0) throw;
    return registry.create_format(id, options);
  }
}

/// Finds the format whose config has `format` (if not null) and the numbers of `wanted`.
std::shared_ptr<const Format> recognise(const Json& format_name, const Json& wanted,
                                        const Json& options, const Registry& registry,
                                        const std::string& where) {
  std::string tried;
  if (registry.format_ids().empty())
    fail(
        "{}: format {} needs a format plugin, and none was found; aqhost plugins tells where it "
        "looks",
        where, format_name.dump());
  for (const std::string& id : registry.format_ids()) {
    try {
      auto format = make_format(registry, id, options);
      if ((format_name.is_null() || format->config()["format"] == format_name) &&
          same_numbers(format->config()["weights"], wanted))
        return format;
    } catch (const Error&) {
      // a format that does not accept these options is not the one that is wanted
    }
    tried += (tried.empty() ? "" : ", ") + id;
  }
  fail("{}: no format plugin reads format {} with {}; tried {}", where, format_name.dump(),
       wanted.dump(), tried);
}

/// Finds the format to which `activations` ("input_activations") rounds. Its scales must be
/// computed at run time, for each token or group.
std::shared_ptr<const Format> recognise_activations(const Field& activations,
                                                    const Registry& registry) {
  const Field dynamic = activations["dynamic"];
  if (dynamic.json() != true && dynamic.json() != "local")
    fail(
        "{}: expected true or \"local\": activations whose scales are stored (static ones) are "
        "not supported",
        dynamic.where());
  Json options = options_of(activations);
  if (options.value("group_size", -1) == 0)
    fail(
        "{} \"tensor\" is not supported for activations, expected \"token\", \"group\" or "
        "\"tensor_group\"",
        activations["strategy"].where());
  options["dynamic"] = true;
  return recognise({}, activations.json(), options, registry, activations.where());
}

/// Finds the formats of a config group. `scale` is the weight_scale of one of its modules, because
/// the config need not say which type scales have.
StoredModule recognise_group(const ConfigGroup& group, const StoredTensor* scale,
                             const Registry& registry, const std::string& where) {
  const std::string at = "quantization_config.config_groups." + group.name;
  StoredModule kind;
  Json options = options_of(Field(group.format["weights"], where, at + ".weights"));
  for (const auto& [type, name] : kRealTypes)
    if (scale != nullptr && scale->dtype == type) options["scale_dtype"] = name;
  if (!group.activations.is_null()) {
    kind.activations =
        recognise_activations(Field(group.activations, where, at + ".input_activations"), registry);
    options["activations"] = kind.activations->id();
  }
  kind.format = recognise(group.format["format"], group.format["weights"], options, registry,
                          where + ": " + at);
  return kind;
}

/// "a.b" for "a.b.weight".
std::string_view stem(std::string_view name) {
  return name.substr(0, name.size() - kWeight.size());
}

/// Whether a suffix shows that a module is packed and not dense.
bool is_packed_suffix(std::string_view suffix) {
  return suffix.starts_with("weight_") && suffix != "weight_g_idx";
}

/// The shape [rows, cols] of a stored module, chosen so that the tensors there have the layout of
/// the format.
std::optional<std::pair<int64_t, int64_t>> shape_of(const Reader& reader, const std::string& name,
                                                    const Format& format) {
  if (const StoredTensor* shape = reader.stored(name + ".weight_shape")) {
    const std::size_t width = shape->dtype == DType::kI64 ? 8 : shape->dtype == DType::kI32 ? 4 : 0;
    if (width == 0 || shape->shape != std::vector<int64_t>{2}) return std::nullopt;
    int64_t value[2] = {0, 0};
    const std::vector<std::byte> bytes = reader.bytes(name + ".weight_shape");
    for (std::size_t i = 0; i < 2; i++)
      std::memcpy(&value[i], bytes.data() + i * width, width);  // little-endian
    return std::pair(value[0], value[1]);
  }
  if (const StoredTensor* codes = reader.stored(name + ".weight");
      codes && codes->shape.size() == 2)
    return std::pair(codes->shape[0], codes->shape[1]);
  const StoredTensor* scale = reader.stored(name + ".weight_scale");
  const int64_t group_size = format.desc().group_size;
  if (scale != nullptr && scale->shape.size() == 2 && group_size > 0 &&
      scale->shape[1] <= kMostFeatures / group_size)
    return std::pair(scale->shape[0], scale->shape[1] * group_size);
  return std::nullopt;
}

/// Returns what `body` returns. If it throws an Error, puts `place` before the message.
template <typename Body>
auto at_place(const std::string& place, Body body) {
  try {
    return body();
  } catch (const Error& e) {
    fail("{}: {}", place, e.what());
  }
}

}  // namespace

DecodedCheckpoint::DecodedCheckpoint(std::unique_ptr<Reader> reader, const Registry& registry)
    : reader_(std::move(reader)) {
  const Field quantization = quantization_config_of(config(), directory());
  if (quantization.is_null()) quantization.mismatch("an object");
  if (quantization["quant_method"].json() == "gptq") layout_ = Layout::kGptq;
  std::set<std::string> names, packed;
  for (const TensorInfo& info : reader_->tensors()) {
    const std::size_t dot = info.name.rfind('.');
    if (dot == std::string::npos) continue;
    const auto suffix = std::string_view(info.name).substr(dot + 1);
    if (is_gptq() ? suffix == "qweight" : is_packed_suffix(suffix))
      names.insert(info.name.substr(0, dot));
  }
  if (is_gptq())
    add_gptq(names, registry);
  else
    add_compressed(names, registry);
  for (const StoredModule& m : modules_) {
    for (const TensorInfo& info : tensors_of(m)) packed.insert(m.name + "." + info.name);
    infos_.push_back({m.name + std::string(kWeight), DType::kBF16, {m.rows, m.cols}});
  }
  for (const TensorInfo& info : reader_->tensors()) {
    if (packed.contains(info.name)) continue;
    if (info.name.ends_with(kWeight) && find_module(stem(info.name)) != nullptr)
      fail("{}: {} is stored twice, quantized and as the dense tensor {}; delete one of them",
           directory(), stem(info.name), info.name);
    infos_.push_back(info);
  }
  std::sort(infos_.begin(), infos_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
}

void DecodedCheckpoint::add_compressed(const std::set<std::string>& names,
                                       const Registry& registry) {
  const std::string where = directory() + "/config.json";
  const auto groups = parse_quantization_config(config().at("quantization_config"), where);
  std::map<const ConfigGroup*, StoredModule> kinds;
  for (const std::string& name : names) {
    const ConfigGroup* group = find_group(groups, name);
    if (group == nullptr)
      fail("{}: no group of quantization_config covers {}, which is stored quantized", where, name);
    StoredModule& kind = kinds[group];
    if (!kind.format)
      kind = recognise_group(*group, reader_->stored(name + ".weight_scale"), registry, where);
    const auto shape = shape_of(*reader_, name, *kind.format);
    if (!shape)
      fail("{}: {}: cannot tell the shape of the matrix (weight_shape is missing or wrong)",
           directory(), name);
    add_module({name, kind.format, kind.activations, shape->first, shape->second});
  }
}

void DecodedCheckpoint::add_gptq(const std::set<std::string>& names, const Registry& registry) {
  const std::string where = directory() + "/config.json";
  const GptqConfig told(config().at("quantization_config"), where);
  std::map<std::pair<int32_t, int32_t>, std::shared_ptr<const Format>> formats;
  for (const std::string& name : names) {
    const std::optional<GptqModule> said = told.find(name);
    if (!said)
      fail("{}: quantization_config.dynamic leaves out {}, which is stored quantized", where, name);
    auto& format = formats[{said->bits, said->group_size}];
    if (!format)
      format = at_place(where + ": quantization_config: " + name, [&] {
        return registry.create_format(
            fmt::format("int{}", said->bits),
            {{"group_size", said->group_size}, {"scale_dtype", "float16"}});
      });
    const StoredTensor* qweight = reader_->stored(name + ".qweight");
    if (qweight->shape.size() != 2 || qweight->shape[0] > kMostFeatures)
      fail("{}: {}.qweight is [{}], expected two dimensions, the first of at most {}", directory(),
           name, fmt::join(qweight->shape, ", "), kMostFeatures);
    add_module({name, format, nullptr, qweight->shape[1], qweight->shape[0] * 32 / said->bits});
  }
}

std::vector<TensorInfo> DecodedCheckpoint::tensors_of(const StoredModule& m) const {
  return stored_tensors(layout_, *m.format, m.activations.get(), m.rows, m.cols);
}

void DecodedCheckpoint::add_module(StoredModule module) {
  const auto plausible = [](int64_t n) { return n > 0 && n <= kMostFeatures; };
  if (!plausible(module.rows) || !plausible(module.cols))
    fail("{}: {}: cannot tell the shape of the matrix (weight_shape is missing or wrong)",
         directory(), module.name);
  const std::vector<TensorInfo> tensors =
      at_place(directory() + ": " + module.name, [&] { return tensors_of(module); });
  for (const TensorInfo& expected : tensors) {
    const StoredTensor* found = reader_->stored(module.name + "." + expected.name);
    if (found == nullptr)
      fail("{}: {}.{} is missing; format {} of a {} x {} matrix needs it", directory(), module.name,
           expected.name, module.format->id(), module.rows, module.cols);
    if (found->dtype != expected.dtype || found->shape != expected.shape)
      fail("{}: {}.{} is {} [{}], format {} of a {} x {} matrix expects {} [{}]", directory(),
           module.name, expected.name, dtype_name(found->dtype), fmt::join(found->shape, ", "),
           module.format->id(), module.rows, module.cols, dtype_name(expected.dtype),
           fmt::join(expected.shape, ", "));
  }
  modules_.push_back(std::move(module));
}

const TensorInfo* DecodedCheckpoint::find(std::string_view name) const {
  const auto it =
      std::lower_bound(infos_.begin(), infos_.end(), name,
                       [](const TensorInfo& a, std::string_view b) { return a.name < b; });
  return it != infos_.end() && it->name == name ? &*it : nullptr;
}

const StoredModule* DecodedCheckpoint::find_module(std::string_view name) const {
  const auto it =
      std::lower_bound(modules_.begin(), modules_.end(), name,
                       [](const StoredModule& a, std::string_view b) { return a.name < b; });
  return it != modules_.end() && it->name == name ? &*it : nullptr;
}

QuantizedMatrix DecodedCheckpoint::read(const StoredModule& module) const {
  std::vector<std::vector<std::byte>> content;
  for (const TensorInfo& info : tensors_of(module))
    if (info.name != kInputGlobalScale)
      content.push_back(reader_->bytes(module.name + "." + info.name));
  const std::vector<std::span<const std::byte>> packed(content.begin(), content.end());
  try {
    if (is_gptq()) return gptq_unpack(*module.format, module.rows, module.cols, packed);
    return module.format->unpack(module.rows, module.cols, packed);
  } catch (const Error& e) {
    fail("{}: {}: {}", directory(), module.name, e.what());
  }
}

std::vector<float> DecodedCheckpoint::decode(const StoredModule& module) const {
  std::vector<float> values = module.format->dequantize(read(module));
  const auto wrong =
      std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
  if (wrong == values.end()) return values;
  const auto at = wrong - values.begin();
  const std::string first = module.name + "." + tensors_of(module).front().name;
  fail("{}: {}: weight [{}, {}] decodes to {}", reader_->file_of(first), module.name,
       at / module.cols, at % module.cols, *wrong);
}

float DecodedCheckpoint::input_global(const StoredModule& module) const {
  if (!has_input_global(module.activations.get())) return 1;
  float global = 0;
  const std::string name = fmt::format("{}.{}", module.name, kInputGlobalScale);
  reader_->read_f32(name, 0, std::span(&global, 1));
  if (!(global > 0)) fail("{}: {} is {}, expected a positive number", directory(), name, global);
  return global;
}

void DecodedCheckpoint::read_f32(std::string_view name, int64_t begin, std::span<float> out) const {
  const StoredModule* module = name.ends_with(kWeight) ? find_module(stem(name)) : nullptr;
  if (module == nullptr) return reader_->read_f32(name, begin, out);
  const std::vector<float> values = decode(*module);
  std::copy_n(values.begin() + begin, out.size(), out.begin());
}

int64_t DecodedCheckpoint::packed_bytes() const {
  int64_t bytes = 0;
  for (const StoredModule& m : modules_) bytes += stored_bytes(tensors_of(m));
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
  if (!is_quantized(reader->config())) return reader;
  return std::make_unique<DecodedCheckpoint>(std::move(reader), registry);
}

}  // namespace aqhost
